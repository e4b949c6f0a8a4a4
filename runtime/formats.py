"""Recognises a picture's format by its first bytes, and says what a file is that is not read, and what to do."""

from __future__ import annotations

import functools
import importlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

READ = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000, ICO, TGA, PPM, PGM, PBM or PFM picture"
"""What is read, as messages say it."""

CONVERT = "convert it to PNG"


class Unsupported(Exception):  # noqa: N818 - an outcome, which load_picture words as a PictureError
    """The picture is valid, or may be, but of a kind that is not read; the text says which, and what to do."""


class TooLarge(Exception):  # noqa: N818 - as above
    """The picture has more pixels than are decoded."""


# Pillow's readers are called by the first bytes of the data rather than through `Image.open`, which imports the readers
# of five formats for any of them, of which JPEG's takes longer than reading a small picture, and which warns of large
# pictures before their size can be looked at. They are the same readers, each imported when its first picture comes.
_SIGNATURES = (
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"RIFF.{4}WEBP", "WebP"),
    (rb"BM", "BMP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"GIF8[79]a", "GIF"),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\x01\0(?!\0\0)", "ICO"),
    (rb"P[1-6][\s#]|Pf\s", "PPM"),
)

_READERS = {
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "WebP": ("WebPImagePlugin", "WebPImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "JPEG 2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "ICO": ("IcoImagePlugin", "IcoImageFile"),
    "PPM": ("PpmImagePlugin", "PpmImageFile"),
    "TGA": ("TgaImagePlugin", "TgaImageFile"),
}

_VIDEO = "save one of its pictures as PNG first, for instance with 'ffmpeg -i VIDEO -frames:v 1 picture.png'"

_KNOWN = (  # first bytes, what it is, what to do
    (rb"\xef?\xbb?\xbf?\s*<(svg\b|(\?xml|!)(?=.*<svg\b))", "an SVG drawing", "export it as PNG first"),
    (rb".{0,1024}?%PDF-", "a PDF document", "save the page as PNG first, for instance with 'pdftoppm -png'"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document", CONVERT),
    (rb"RIFF.{4}AVI |\x1aE\xdf\xa3|FLV\x01|OggS|\0\0\x01[\xba\xb3]|0&\xb2u\x8ef\xcf\x11", "a video", _VIDEO),
    (rb".{4}(moov|mdat|wide|free|skip|pnot)", "a video", _VIDEO),
    (rb"8BPS", "a Photoshop file", "export it as PNG"),
    (rb"gimp xcf", "a GIMP file", "export it as PNG"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", f"{CONVERT}, for instance with 'djxl'"),
    (rb"II\xbc\x01", "a JPEG XR picture", CONVERT),
    (rb"FUJIFILMCCD-RAW|II(RO|RS|U\0)|MMOR|.{4}ftypcrx", "a camera's raw file", "export it as JPEG or PNG"),
    (rb"v/1\x01", "an OpenEXR picture", CONVERT),
    (rb"#\?(RADIANCE|RGBE)", "a Radiance HDR picture", CONVERT),
    (rb"P7\s", "a PAM picture", CONVERT),
    (rb"PF\s", "a colour PFM picture", CONVERT),
    (rb"[\x8a\x8b][MJ]NG\r\n\x1a\n", "an MNG or JNG picture", CONVERT),
    (rb"qoif", "a QOI picture", CONVERT),
    (rb"DDS ", "a DDS texture", CONVERT),
    (rb"icns", "an ICNS icon", CONVERT),
    (rb"\0\0\x02\0(?!\0\0)", "a CUR cursor", CONVERT),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "a Windows metafile", CONVERT),
    (rb"SIMPLE  =", "a FITS picture", CONVERT),
    (rb".{128}DICM", "a DICOM picture", CONVERT),
    (rb"AT&TFORM", "a DjVu document", CONVERT),
    (rb"(\xef\xbb\xbf)?\s*<(?i:!doctype html|html)", "a web page", "download the picture itself"),
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the picture with 'git lfs pull'"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ", "an archive", "unpack it first"),
)

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}


def recognise(data: bytes) -> str:
    """Return the name of the format of `data`, a key of Pillow's readers or "HEIC".

    Raises:
        Unsupported: it is of another format.
    """
    for signature, kind in _SIGNATURES:
        if re.match(signature, data, re.DOTALL):
            return kind
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4], "big"), 512)
        brands = {data[8:12], *(data[place : place + 4] for place in range(16, size - 3, 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIC"
        if data[8:12] != b"crx ":
            raise Unsupported(f"it is a video; {_VIDEO}")
    for signature, what, remedy in _KNOWN:
        if re.match(signature, data[:4096], re.DOTALL):
            raise Unsupported(f"it is {what}, which is not read; {remedy}")
    if _is_tga(data):
        return "TGA"
    raise Unsupported(f"it is not a {READ}; convert it to one of these")


def _is_tga(data: bytes) -> bool:
    """Whether the header is that of a TGA, which has no signature: every field must make sense, and the size agree."""
    if len(data) < 19:
        return False
    mapped, kind, depth, descriptor = data[1], data[2], data[16], data[17]
    entries, entry_bits = int.from_bytes(data[5:7], "little"), data[7]
    width, height = int.from_bytes(data[12:14], "little"), int.from_bytes(data[14:16], "little")
    depths = {1: (8,), 2: (15, 16, 24, 32), 3: (1, 8, 16)}.get(kind & 7, ())
    if kind not in (1, 2, 3, 9, 10, 11) or depth not in depths or not width or not height or descriptor & 0xC0:
        return False
    if mapped != (kind & 7 == 1) and not (mapped == 1 and entries):
        return False
    if mapped and entry_bits not in (15, 16, 24, 32):
        return False
    if not mapped and any(data[3:8]):
        return False
    rest = len(data) - 18 - data[0] - entries * ((entry_bits + 7) // 8) * mapped
    pixels = height * ((width * depth + 7) // 8) if depth == 1 else width * height * ((depth + 7) // 8)
    return rest >= (pixels if kind < 8 else max(1, width * height // 128))


def _nothing(_self: object) -> None:
    pass


@functools.cache
def reader(kind: str) -> type[ImageFile]:
    """Return the class that reads the format `kind` from a binary stream.

    Raises:
        Unsupported: what reads it is not installed.
    """
    if kind == "HEIC":
        try:
            from pillow_heif import HeifImageFile  # an extra: it brings libheif and its decoders
        except ImportError:
            raise Unsupported(
                "it is a HEIC picture, and what reads these is not installed: 'pip install pillow-heif', or convert "
                "it to JPEG"
            ) from None
        return HeifImageFile
    module, name = _READERS[kind]
    found = getattr(importlib.import_module(f"PIL.{module}"), name)
    if kind == "JPEG":  # the resolution is of no use here, and Pillow's look for it warns of damaged EXIF data
        return type("JpegReader", (found,), {"_read_dpi_from_exif": _nothing})
    if kind == "AVIF" and not importlib.import_module(f"PIL.{module}").SUPPORTED:
        raise Unsupported("it is an AVIF picture, and this Pillow was built without AVIF: 'pip install -U pillow'")
    return found
