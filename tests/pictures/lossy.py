"""The corpus's JPEG, MPO, WebP, AVIF, HEIC and JPEG 2000 pictures."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import corpus
import cv2
import imagecodecs
import numpy as np
import raw_pictures as raw
from corpus import ALPHA, GREY, GREY_RGB, HEIGHT, RGB, WIDTH, Variant, opencv
from PIL import Image

BGR = np.ascontiguousarray(RGB[..., ::-1])


def variants() -> Iterator[Variant]:
    for part in (jpegs, jpeg_orientations, jpeg_others, webps, avifs, jpeg2000s, heics):
        yield from part()


def by_pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_opencv(suffix: str, array: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, array, options)[1].tobytes()


def jpegs() -> Iterator[Variant]:
    samplings = {"4:4:4": 0x111111, "4:2:2": 0x211111, "4:2:0": 0x221111, "4:4:0": 0x121111, "4:1:1": 0x411111}
    for name, sampling in samplings.items():
        for progressive in (0, 1):
            for restart in (0, 1, 5):
                data = by_opencv(
                    ".jpg",
                    BGR,
                    *(cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive),
                    *(cv2.IMWRITE_JPEG_RST_INTERVAL, restart, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling),
                )
                title = f"{name}{', progressive' * progressive}{f', restart {restart}' if restart else ''}"
                yield Variant("JPEG", title, "OpenCV", data, RGB, mean=8, judge=opencv, judged=1)
    for progressive in (0, 1):
        data = by_opencv(".jpg", GREY, cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
        yield Variant("JPEG", f"grey{', progressive' * progressive}", "OpenCV", data, GREY_RGB, mean=2, judge=opencv)
    ink = np.dstack([255 - RGB, 0 * GREY])
    for name, array, spaces, expected in (
        ("grey", GREY, (None, None), GREY_RGB),
        ("YCbCr", RGB, ("rgb", "ycbcr"), RGB),
        ("RGB", RGB, ("rgb", "rgb"), RGB),
        ("CMYK", 255 - ink, ("cmyk", "cmyk"), RGB),
        ("YCCK", 255 - ink, ("cmyk", "ycck"), RGB),
    ):
        data = imagecodecs.jpeg8_encode(np.ascontiguousarray(array), 95, colorspace=spaces[0], outcolorspace=spaces[1])
        yield Variant(
            "JPEG", name, "imagecodecs", data, expected, mean=6, judge=opencv if name != "RGB" else None, judged=2
        )
    data = imagecodecs.jpeg8_encode(RGB, 95, optimize=True, subsampling="444")
    yield Variant("JPEG", "Huffman tables of its own", "imagecodecs", data, RGB, mean=3, judge=opencv)
    for adobe in (0, 2):
        segment = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe)
        plain = imagecodecs.jpeg8_encode(
            np.ascontiguousarray(255 - ink), 95, colorspace="cmyk", outcolorspace=("cmyk", None, "ycck")[adobe]
        )
        bare = without(plain, 0xEE)
        yield Variant(
            "JPEG",
            f"four channels, Adobe transform {adobe}",
            "imagecodecs",
            raw.with_segment(bare, 0xEE, segment),
            RGB,
            mean=6,
        )
    bare = without(
        imagecodecs.jpeg8_encode(np.ascontiguousarray(255 - ink), 95, colorspace="cmyk", outcolorspace="cmyk"), 0xEE
    )
    yield Variant("JPEG", "CMYK without an Adobe segment", "imagecodecs", bare, RGB, mean=6, judge=opencv, judged=2)
    for mode, expected in (("RGB", RGB), ("L", GREY_RGB), ("CMYK", RGB)):
        image = Image.fromarray(GREY) if mode == "L" else Image.fromarray(RGB).convert(mode)
        for progressive in (False, True):
            data = by_pillow(image, "JPEG", quality=95, progressive=progressive)
            yield Variant("JPEG", f"{mode}{', progressive' * progressive}", "Pillow", data, expected, mean=6)


def without(jpeg: bytes, marker: int) -> bytes:
    """Drop the first segment of a kind."""
    place = jpeg.find(bytes([0xFF, marker]))
    return jpeg if place < 0 else jpeg[:place] + jpeg[place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big") :]


def jpeg_orientations() -> Iterator[Variant]:
    for orientation in range(1, 9):
        turned = np.ascontiguousarray(corpus.stored(RGB, orientation)[..., ::-1])
        plain = by_opencv(".jpg", turned, cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111)
        for order in "<>":
            for kind in (3, 4):
                name = f"orientation {orientation}, {order}{'SHORT' if kind == 3 else 'LONG'}"
                data = raw.with_segment(plain, 0xE1, b"Exif\0\0" + raw.exif(orientation, order, kind))
                judge = opencv if kind == 3 else None  # OpenCV reads the first half of a LONG
                yield Variant("JPEG", name, "OpenCV", data, RGB, mean=3, judge=judge)
        for as_element in (False, True):
            packet = b"http://ns.adobe.com/xap/1.0/\0" + raw.xmp(orientation, as_element)
            name = f"orientation {orientation} in XMP's {'elements' if as_element else 'attributes'}"
            yield Variant("JPEG", name, "OpenCV", raw.with_segment(plain, 0xE1, packet), RGB, mean=3)
        both = raw.with_segment(plain, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + raw.xmp(1 + orientation % 8))
        both = raw.with_segment(both, 0xE1, b"Exif\0\0" + raw.exif(orientation))
        yield Variant("JPEG", f"orientation {orientation} in EXIF, another in XMP", "OpenCV", both, RGB, mean=3)


def jpeg_others() -> Iterator[Variant]:
    plain = by_opencv(".jpg", BGR, cv2.IMWRITE_JPEG_QUALITY, 95)
    progressive = by_opencv(".jpg", BGR, cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    for name, data in (("baseline", plain), ("progressive", progressive)):
        yield Variant("JPEG", f"{name} without its end", "OpenCV", data[:-2], RGB, mean=8)
        yield Variant("JPEG", f"{name} with half of its end", "OpenCV", data[:-1], RGB, mean=8)
        yield Variant(
            "JPEG", f"{name} with more after its end", "OpenCV", data + b"more" * 9, RGB, mean=8, judge=opencv
        )
    yield Variant("JPEG", "fill bytes before a marker", "OpenCV", plain[:2] + b"\xff\xff" + plain[2:], RGB, mean=8)
    comment = raw.with_segment(plain, 0xFE, b"a comment")
    yield Variant("JPEG", "a comment", "OpenCV", comment, RGB, mean=8, judge=opencv)
    for name, segment in (
        ("EXIF that is none", b"Exif\0\0nonsense"),
        ("XMP that is none", b"http://ns.adobe.com/xap/1.0/\0<"),
    ):
        yield Variant("JPEG", name, "OpenCV", raw.with_segment(plain, 0xE1, segment), RGB, mean=8, judge=opencv)
    yield Variant(
        "JPEG", "a broken index of pictures", "OpenCV", raw.with_segment(plain, 0xE2, b"MPF\0II*\0"), RGB, mean=8
    )
    second = Image.fromarray(255 - RGB)
    data = by_pillow(Image.fromarray(RGB), "MPO", save_all=True, append_images=[second], quality=95)
    yield Variant("MPO", "two pictures", "Pillow", data, RGB, mean=8, judge=opencv)
    turned = Image.fromarray(corpus.stored(RGB, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = by_pillow(turned, "MPO", save_all=True, append_images=[second], quality=95, exif=exif)
    yield Variant("MPO", "two pictures, turned", "Pillow", data, RGB, mean=8)
    deep = imagecodecs.jpeg8_encode(RGB.astype(np.uint16) << 4, 95, bitspersample=12)
    yield Variant("JPEG", "12 bits", "imagecodecs", deep, None, "12-bit")
    exact = imagecodecs.jpeg8_encode(RGB, lossless=True)
    yield Variant("JPEG", "lossless", "imagecodecs", exact, None, "lossless")
    yield Variant("JPEG", "JPEG-LS", "imagecodecs", imagecodecs.jpegls_encode(GREY), None, "JPEG-LS")


def webps() -> Iterator[Variant]:
    opaque, alpha = np.dstack([RGB, np.full_like(GREY, 255)]), np.dstack([RGB, ALPHA])
    over = corpus.over_white(RGB, ALPHA)
    for method in (0, 6):
        for name, array, expected in (("RGB", RGB, RGB), ("opaque RGBA", opaque, RGB)):
            data = imagecodecs.webp_encode(array, 100, lossless=True, method=method)
            yield Variant("WebP", f"lossless {name}, method {method}", "imagecodecs", data, expected, judge=opencv)
            data = imagecodecs.webp_encode(array, 95, lossless=False, method=method)
            yield Variant("WebP", f"lossy {name}, method {method}", "imagecodecs", data, expected, mean=8, judge=opencv)
        data = imagecodecs.webp_encode(alpha, 100, lossless=True, method=method)
        yield Variant("WebP", f"lossless RGBA, method {method}", "imagecodecs", data, over, most=1)
        data = imagecodecs.webp_encode(alpha, 95, lossless=False, method=method)
        yield Variant("WebP", f"lossy RGBA, method {method}", "imagecodecs", data, over, mean=8)
    yield Variant(
        "WebP", "lossless", "OpenCV", by_opencv(".webp", BGR, cv2.IMWRITE_WEBP_QUALITY, 101), RGB, judge=opencv
    )
    yield Variant(
        "WebP", "lossy", "OpenCV", by_opencv(".webp", BGR, cv2.IMWRITE_WEBP_QUALITY, 95), RGB, mean=8, judge=opencv
    )
    for orientation in range(1, 9):
        image = Image.fromarray(corpus.stored(RGB, orientation))
        for name, metadata in (
            ("EXIF", {"exif": raw.exif(orientation, ">", 4)}),
            ("XMP", {"xmp": raw.xmp(orientation)}),
        ):
            data = by_pillow(image, "WEBP", lossless=True, **metadata)
            yield Variant("WebP", f"orientation {orientation} in {name}", "Pillow", data, RGB)
    data = by_pillow(
        Image.fromarray(RGB), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]
    )
    yield Variant("WebP", "animated", "Pillow", data, RGB)


def avifs() -> Iterator[Variant]:
    alpha, over = np.dstack([RGB, ALPHA]), corpus.over_white(RGB, ALPHA)
    for pixels in ("444", "422", "420"):
        data = imagecodecs.avif_encode(RGB, 95, pixelformat=pixels, speed=8)
        yield Variant("AVIF", f"8 bits, {pixels}", "imagecodecs", data, RGB, mean=8)
    for bits in (10, 12):
        data = imagecodecs.avif_encode(RGB.astype(np.uint16) << (bits - 8), 95, bitspersample=bits, speed=8)
        yield Variant("AVIF", f"{bits} bits", "imagecodecs", data, RGB, mean=8)
    yield Variant("AVIF", "grey", "imagecodecs", imagecodecs.avif_encode(GREY, 95, speed=8), GREY_RGB, mean=3)
    yield Variant("AVIF", "alpha", "imagecodecs", imagecodecs.avif_encode(alpha, 95, speed=8), over, mean=8)
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        data = imagecodecs.avif_encode(RGB, 95, speed=8, primaries=9, transfer=transfer, matrix=9)
        yield Variant("AVIF", name, "imagecodecs", data, None, "HDR")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = by_pillow(
            Image.fromarray(corpus.stored(RGB, orientation)), "AVIF", quality=95, subsampling="4:4:4", exif=exif
        )
        yield Variant("AVIF", f"orientation {orientation}", "Pillow", data, RGB, mean=5)
    data = by_pillow(
        Image.fromarray(RGB), "AVIF", quality=95, save_all=True, append_images=[Image.fromarray(255 - RGB)]
    )
    yield Variant("AVIF", "animated", "Pillow", data, RGB, mean=8)


def jpeg2000s() -> Iterator[Variant]:
    alpha, over = np.dstack([RGB, ALPHA]), corpus.over_white(RGB, ALPHA)
    deep, deep_rgb = GREY.astype(np.uint16), RGB.astype(np.uint16)
    for container in ("jp2", "j2k"):
        for name, array, bits, expected, most in (
            ("grey", GREY, None, GREY_RGB, 0),
            ("RGB", RGB, None, RGB, 0),
            ("12-bit grey", deep << 4, 12, GREY_RGB, 0),
            ("16-bit grey", deep * 257, None, GREY_RGB, 0),
            ("12-bit RGB", deep_rgb << 4, 12, RGB, 0),
            ("16-bit RGB", deep_rgb * 257, None, RGB, 1),
            ("RGBA", alpha, None, over, 1),
        ):
            data = imagecodecs.jpeg2k_encode(array, 0, codecformat=container, reversible=True, bitspersample=bits)
            yield Variant("JPEG 2000", f"{name}, {container}", "imagecodecs", data, expected, most=most)
        data = imagecodecs.jpeg2k_encode(RGB, 40, codecformat=container)
        yield Variant("JPEG 2000", f"lossy, {container}", "imagecodecs", data, RGB, mean=4)
    tiled = by_pillow(Image.fromarray(RGB), "JPEG2000", tile_size=(16, 16), irreversible=False)
    yield Variant("JPEG 2000", "tiles", "Pillow", tiled, RGB)
    yield Variant(
        "JPEG 2000", "RGB", "OpenCV", by_opencv(".jp2", BGR, cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000), RGB, mean=4
    )


def heics() -> Iterator[Variant]:
    import pillow_heif

    def encoded(image: Image.Image, **options: Any) -> bytes:
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, quality=95, **options)
        return file.getvalue()

    for chroma in (444, 422, 420):
        yield Variant(
            "HEIC", f"RGB, {chroma}", "pillow-heif", encoded(Image.fromarray(RGB), chroma=chroma), RGB, mean=8
        )
    yield Variant("HEIC", "grey", "pillow-heif", encoded(Image.fromarray(GREY)), GREY_RGB, mean=4)
    data = encoded(Image.fromarray(np.dstack([RGB, ALPHA])), chroma=444)
    yield Variant("HEIC", "RGBA", "pillow-heif", data, corpus.over_white(RGB, ALPHA), mean=8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(corpus.stored(RGB, orientation)), exif=exif.tobytes(), chroma=444)
        yield Variant("HEIC", f"orientation {orientation}", "pillow-heif", data, RGB, mean=5)
