"""Pictures of every kind become 32x32 RGB, and whatever cannot be read says so in one sentence."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgecifar.runtime import decoding, formats, pictures
from edgecifar.runtime.contract import CIFAR10, FITS, Contract
from edgecifar.runtime.errors import PictureError
from edgecifar.runtime.pictures import load_picture

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP")


def load(source, fit=None, **options) -> np.ndarray:
    return load_picture(source, CIFAR10, fit, **options)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def quadrants(height: int, width: int) -> np.ndarray:
    """Red, green / blue, yellow."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = YELLOW
    return pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, and whose data does not hold it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def refusal(source, **options) -> str:
    """The message that `source` is refused with: one sentence."""
    with pytest.raises(PictureError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def assert_is_picture(pixels: np.ndarray) -> None:
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


# what passes unchanged


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_32x32_rgb_picture_passes_bit_for_bit(kind, fit):
    pixels = noise(32, 32)
    loaded = load(encoded(Image.fromarray(pixels), kind), fit)
    assert_is_picture(loaded)
    np.testing.assert_array_equal(loaded, pixels)


def test_path_text_bytes_and_stream_give_the_same(tmp_path, monkeypatch):
    pixels = noise(32, 32)
    path = tmp_path / "a picture without suffix"
    path.write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(load(path), pixels)
    np.testing.assert_array_equal(load(str(path)), pixels)
    np.testing.assert_array_equal(load(path.read_bytes()), pixels)
    with path.open("rb") as stream:
        np.testing.assert_array_equal(load(stream), pixels)
    with path.open("rb", buffering=0) as raw:
        np.testing.assert_array_equal(load(raw), pixels)
    with path.open() as text:
        monkeypatch.setattr("sys.stdin", text)
        np.testing.assert_array_equal(load("-"), pixels)


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(PictureError, match="standard input: it is closed"):
        load("-")


def test_a_pipe_that_cannot_seek_is_read_to_its_end():
    pixels = noise(32, 32)
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as out, os.fdopen(writer, "wb") as into:
        into.write(encoded(Image.fromarray(pixels), "BMP"))
        into.close()
        np.testing.assert_array_equal(load(out), pixels)


# sizes


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (31, 33), (33, 31), (700, 300)])
def test_any_size_keeps_its_colour(width, height, fit):
    loaded = load(encoded(Image.new("RGB", (width, height), (200, 100, 50)), "PNG"), fit)
    assert_is_picture(loaded)
    colours = {tuple(map(int, pixel)) for pixel in loaded.reshape(-1, 3)}
    square = fit != "pad" or width == height or (width, height) in {(31, 33), (33, 31)}
    if fit == "pad" and not square:
        assert colours == {(200, 100, 50), (128, 128, 128)}
    else:
        assert (200, 100, 50) in colours


@pytest.mark.parametrize(("height", "width"), [(64, 64), (8, 8), (64, 200), (200, 64), (600, 900)])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_quadrants_keep_their_colours_and_places(height, width, fit):
    loaded = load(encoded(Image.fromarray(quadrants(height, width)), "PNG"), fit)
    for where, colour in [((2, 2), RED), ((2, 29), GREEN), ((29, 2), BLUE), ((29, 29), YELLOW)]:
        assert tuple(loaded[where]) == colour


def test_crop_cuts_the_centre_without_resampling_when_the_shorter_side_is_32():
    pixels = noise(32, 100)
    np.testing.assert_array_equal(load(encoded(Image.fromarray(pixels), "PNG")), pixels[:, 34:66])
    pixels = noise(100, 32)
    np.testing.assert_array_equal(load(encoded(Image.fromarray(pixels), "PNG")), pixels[34:66])


def test_pad_keeps_the_whole_picture_between_bands_of_grey():
    pixels = noise(16, 32)
    loaded = load(encoded(Image.fromarray(pixels), "PNG"), "pad")
    np.testing.assert_array_equal(loaded[8:24], pixels)
    assert np.all(loaded[:8] == 128)
    assert np.all(loaded[24:] == 128)


@pytest.mark.parametrize("fit", FITS)
def test_scaling_down_is_antialiased(fit):
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    loaded = load(encoded(Image.fromarray(stripes), "PNG"), fit)
    assert loaded.min() >= 126
    assert loaded.max() <= 129


def test_a_big_jpeg_decoded_small_looks_like_the_same_picture_decoded_whole():
    y, x = np.mgrid[0:1024, 0:1536]
    smooth = np.stack([x / 6, y / 4, (x + y) / 10], axis=-1).clip(0, 255).astype(np.uint8)
    jpeg = encoded(Image.fromarray(smooth), "JPEG", quality=95)
    whole = encoded(Image.open(io.BytesIO(jpeg)), "PNG")
    np.testing.assert_allclose(load(jpeg).astype(int), load(whole).astype(int), atol=3)


# modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG", "GIF"])
def test_grey_becomes_three_equal_channels(kind):
    loaded = load(encoded(Image.new("L", (32, 32), 77), kind))
    assert np.all(loaded == 77)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit_becomes_black_and_white(kind):
    bits = noise(32, 32, 1)[..., 0] > 127
    loaded = load(encoded(Image.fromarray(bits), kind))
    np.testing.assert_array_equal(loaded, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette_becomes_its_colours(kind):
    palette = Image.fromarray(quadrants(32, 32)).quantize(4)
    np.testing.assert_array_equal(load(encoded(palette, kind)), quadrants(32, 32))


def test_palette_with_one_transparent_colour_lies_over_white():
    palette = Image.new("P", (32, 32))
    palette.putpalette([*RED, *GREEN])
    palette.paste(1, (16, 0, 32, 32))
    for kind in ("PNG", "GIF"):
        loaded = load(encoded(palette, kind, transparency=1))
        assert np.all(loaded[:, :16] == RED)
        assert np.all(loaded[:, 16:] == 255)


def test_palette_with_an_alpha_per_colour_lies_over_white():
    palette = Image.new("P", (32, 32))
    palette.putpalette([*RED, *BLUE, *GREEN])
    palette.paste(1, (0, 16, 32, 32))
    loaded = load(encoded(palette, "PNG", transparency=bytes([255, 51])))
    assert np.all(loaded[:16] == RED)
    assert np.all(loaded[16:] == (204, 204, 255))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_lies_over_white(kind):
    rgba = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    for x, alpha in enumerate((0, 51, 102, 204, 255)):
        rgba.putpixel((x, 0), (255, 0, 100, alpha))
    loaded = load(encoded(rgba, kind, **({"exact": True} if kind == "WEBP" else {})))
    expected = [(255, 255, 255), (255, 204, 224), (255, 153, 193), (255, 51, 131), (255, 0, 100)]
    assert [tuple(map(int, pixel)) for pixel in loaded[0, :5]] == expected
    assert np.all(loaded[1:] == 255)


def test_grey_with_alpha_lies_over_white():
    assert np.all(load(encoded(Image.new("LA", (32, 32), (0, 204)), "PNG")) == 51)


def test_a_transparent_colour_without_palette_lies_over_white():
    rgb = Image.fromarray(quadrants(32, 32))
    expected = quadrants(32, 32)
    expected[:16, :16] = 255
    np.testing.assert_array_equal(load(encoded(rgb, "PNG", transparency=RED)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    grey = np.zeros((32, 32), np.uint16)
    grey[0, :6] = [0, 257, 128 * 257, 255 * 257, 256, 300]
    loaded = load(encoded(Image.fromarray(grey), kind))
    assert loaded[0, :6, 0].tolist() == [0, 1, 128, 255, 1, 1]
    assert np.all(loaded[..., 0] == loaded[..., 2])


def test_transparent_sixteen_bit_grey_lies_over_white():
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" + struct.pack(">HH", 500, 0))
    parts = ((b"IHDR", header), (b"tRNS", struct.pack(">H", 500)), (b"IDAT", rows), (b"IEND", b""))
    loaded = load(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts), "squash")
    assert np.all(loaded[:, 0] == 255)
    assert np.all(loaded[:, -1] == 0)


@pytest.mark.parametrize("white", [1, 255, 65535, 1e6])
def test_floats_are_scaled_by_the_range_they_fill(white):
    values = np.zeros((32, 32), np.float32)
    values[0, :6] = [white, white * 0.6, -white, np.nan, -np.inf, np.inf]
    values.view(np.uint32)[0, 6] = 0x7FA00000  # a signalling NaN
    loaded = load(encoded(Image.fromarray(values), "TIFF"))
    assert loaded[0, :7, 1].tolist() == [255, 153, 0, 0, 0, 255, 0]


def test_integers_beyond_sixteen_bits_are_scaled_by_their_maximum():
    values = np.zeros((32, 32), np.int32)
    values[0, :3] = [2**30, 2**29, -5]
    assert load(encoded(Image.fromarray(values), "TIFF"))[0, :3, 0].tolist() == [255, 128, 0]
    values[0, :3] = [65535, 257, -5]
    assert load(encoded(Image.fromarray(values), "TIFF"))[0, :3, 0].tolist() == [255, 1, 0]


@pytest.mark.parametrize(("kind", "off"), [("TIFF", 0), ("JPEG", 3)])
def test_cmyk_becomes_rgb(kind, off):
    loaded = load(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 51)), kind))
    np.testing.assert_allclose(loaded.astype(int), np.broadcast_to([204, 0, 0], loaded.shape), atol=off)


@pytest.mark.parametrize(("mode", "kind"), [("YCbCr", "TIFF"), ("YCbCr", "JPEG"), ("LAB", "TIFF")])
def test_other_colour_spaces_become_rgb(mode, kind):
    loaded = load(encoded(Image.new("RGB", (32, 32), (180, 90, 40)).convert(mode), kind))
    np.testing.assert_allclose(loaded.astype(int), np.broadcast_to([180, 90, 40], loaded.shape), atol=4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_taken(kind):
    first, second = Image.new("RGB", (32, 32), RED), Image.new("RGB", (32, 32), BLUE)
    assert np.all(load(encoded(first, kind, save_all=True, append_images=[second])) == RED)


# orientation

STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation, kind):
    upright = noise(32, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    np.testing.assert_array_equal(load(encoded(stored, kind, exif=exif)), upright)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("order", [b"II", b"MM"])
def test_exif_orientation_of_a_big_jpeg_is_applied(orientation, order):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](quadrants(400, 600))))
    pack = ">" if order == b"MM" else "<"
    exif = b"Exif\0\0" + order + struct.pack(pack + "HIHHHIHH", 42, 8, 1, 0x0112, 3, 1, orientation, 0)
    loaded = load(encoded(stored, "JPEG", exif=exif, quality=95)).astype(int)
    for where, colour in [((3, 3), RED), ((3, 28), GREEN), ((28, 3), BLUE), ((28, 28), YELLOW)]:
        np.testing.assert_allclose(loaded[where], colour, atol=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_beside_tags_that_pillow_cannot_write(kind):
    """A description that is a number is odd, and no reason to show the picture lying down."""
    entries = struct.pack("<HHIIHHII", 274, 3, 1, 6, 270, 11, 1, 30)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(44)
    lying = Image.fromarray(noise(32, 32))
    turned = load(encoded(lying.transpose(Image.Transpose.ROTATE_270), kind, quality=95)).astype(int)
    assert np.abs(load(encoded(lying, kind, quality=95, exif=exif)) - turned).mean() < 5


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"Exif\0\0II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, 9, 0),
        b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 2, 0x010F, 2, 999, 500) + b"\x12",
        b"nonsense",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_is_no_reason_to_refuse_a_picture(exif, kind):
    data = encoded(Image.new("RGB", (32, 32), (90, 90, 90)), kind, exif=exif)
    assert np.all(load(data) == 90)


# what is refused


WORDS = {"WEBP": "WebP", "JPEG2000": "JPEG 2000"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated(tmp_path, kind, part):
    data = encoded(Image.fromarray(noise(64, 64)), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * part)])
    assert f"{path}: its {WORDS.get(kind, kind)} data is damaged or incomplete" in refusal(path)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_jpeg_that_lacks_more_than_its_end_marker_is_incomplete(progressive, smooth):
    y, x = np.mgrid[0:96, 0:96]
    pixels = np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8) if smooth else noise(96, 96)
    data = encoded(Image.fromarray(pixels), "JPEG", progressive=progressive, quality=90)
    whole = load(data)
    np.testing.assert_array_equal(load(data[:-2]), whole)
    for missing in (4, 8, 16, 40, len(data) // 10, len(data) // 2):
        assert "JPEG data is damaged or incomplete" in refusal(data[: -2 - missing])


def test_a_progressive_jpeg_that_ends_between_two_scans_is_incomplete():
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG", progressive=True)
    scans = [place for place in range(len(data)) if data.startswith(b"\xff\xda", place)]
    assert len(scans) > 4
    for place in scans[1:]:
        cut = data[: data.rindex(b"\xff\xc4", 0, place)]  # before the tables of the scan
        assert "damaged or incomplete" in refusal(cut)


def test_corrupt_data_inside_a_png():
    data = bytearray(encoded(Image.fromarray(noise(64, 64)), "PNG"))
    data[200:300] = bytes(100)
    assert "PNG data is damaged" in refusal(bytes(data))


def test_text_named_png(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not a picture at all")
    message = refusal(path)
    assert str(path) in message
    assert "it is not a PNG, JPEG, " in message


@pytest.mark.parametrize(
    ("start", "what", "remedy"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG", "export it as PNG"),
        (b"<?xml version='1.0'?>\n<!-- by hand -->\n<svg width='5'/>", "SVG", "export it as PNG"),
        (b"%PDF-1.7\n", "PDF", "pdftoppm"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript", "PNG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "video", "ffmpeg"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video", "ffmpeg"),
        (b"\0\0\0\x08wide\0\0\1\0mdat", "video", "ffmpeg"),
        (b"\x1aE\xdf\xa3\x01\0\0\0", "video", "ffmpeg"),
        (b"RIFF\x24\0\0\0AVI LIST", "video", "ffmpeg"),
        (b"8BPS\0\1", "Photoshop", "PNG"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL", "djxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "djxl"),
        (b"FUJIFILMCCD-RAW 0201", "raw", "JPEG"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw", "JPEG"),
        (b"v/1\1\2\0\0\0", "OpenEXR", "PNG"),
        (b"#?RADIANCE\n", "Radiance", "PNG"),
        (b"qoif\0\0", "QOI", "PNG"),
        (b"\0\0\2\0\1\0", "CUR", "PNG"),
        (b"<!DOCTYPE html><html>", "web page", "download the picture"),
        (b"\n<!doctype html><html>", "web page", "download the picture"),
        (b"\xef\xbb\xbf<HTML>", "web page", "download the picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS", "git lfs pull"),
        (b"PK\3\4\x14\0", "archive", "unpack"),
        (b"\x1f\x8b\x08\0", "archive", "unpack"),
    ],
)
def test_what_is_no_picture_that_is_read_is_refused_by_name(start, what, remedy):
    message = refusal(start + bytes(300))
    assert what in message
    assert remedy in message
    assert "damaged" not in message


def test_random_text_is_not_taken_for_a_tga():
    for seed in range(300):
        data = np.random.default_rng(seed).integers(0, 256, 400, np.uint8).tobytes()
        assert "TGA data" not in refusal(data)


def test_empty(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert refusal(path) == f"Could not read {path}: it is empty; save or download it again."
    assert refusal(b"") == "Could not read the given bytes: it is empty; save or download it again."


def test_missing_file(tmp_path):
    path = tmp_path / "gone.png"
    assert refusal(path) == f"Could not read {path}: there is no such file; check the path."


def test_a_url_is_named_as_one():
    assert "URL" in refusal("https://example.org/cat.png")


def test_folder_in_place_of_a_file(tmp_path):
    assert refusal(tmp_path) == f"Could not read {tmp_path}: it is a folder; name a picture file in it."


def test_no_permission(tmp_path, monkeypatch):
    def deny(*_args, **_kwargs):  # root, whom tests may run as, is denied nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    assert "you may not read it; change its permissions" in refusal(tmp_path / "secret.png")


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 5000 + ".png", ""])
def test_impossible_paths(path):
    assert "check that it is a file" in refusal(path) or "it is a folder" in refusal(path)


def test_streams_that_give_no_bytes(tmp_path):
    assert "the given stream: it gives no bytes; open it in binary mode" in refusal(io.StringIO("text"))
    closed = io.BytesIO(b"x")
    closed.close()
    assert "closed file" in refusal(closed)


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_too_many_pixels_are_refused_from_the_header(width, height):
    message = refusal(png_header(width, height), name="bomb.png")
    assert message == "Could not read bomb.png: it has more than 64 million pixels; scale it down first."


def test_a_bomb_in_an_icon(tmp_path):
    png = png_header(20_000, 20_000)
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(png), 22)
    assert "pixels; scale it down first" in refusal(struct.pack("<HHH", 0, 1, 1) + entry + png)


def test_an_icon_s_own_limit_holds_before_it_is_decoded(monkeypatch):
    def decoded(_kind):
        raise AssertionError

    monkeypatch.setattr(decoding, "reader", decoded)
    png = png_header(5_000, 5_001)  # Pillow's own limit is higher
    bitmap = struct.pack("<IiiHHIIIIII", 40, 5_000, 2 * 5_001, 1, 32, 0, 0, 0, 0, 0, 0)
    for inner in (png, bitmap):
        entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22)
        with pytest.raises(PictureError, match="25 million pixels"):
            load_picture(struct.pack("<HHH", 0, 1, 1) + entry + inner, CIFAR10, max_pixels=25_000_000)


def test_a_tile_larger_than_its_tiff():
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16_384, 323: 16_384, 324: 200, 325: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(300)
    assert "pixels; scale it down first" in refusal(data)


def test_a_jpeg_of_too_many_scans():
    data = encoded(Image.new("L", (16, 16)), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    assert_is_picture(load(data[:-2] + 10 * last + data[-2:]))
    assert "of more than 200 scans" in refusal(data[:-2] + 200 * last + data[-2:])
    assert_is_picture(load(data + 300 * last))  # what is behind the end is not the picture


@pytest.mark.parametrize("length", [1, 2, 3, 50, 51, 2**21 + 3])
def test_pairs_are_counted_as_bytes_count_does(length):
    data = np.random.default_rng(length).choice(np.frombuffer(b"\xff\xda\x00", np.uint8), length).tobytes()
    for place in (0, 1, 2, length, length + 5):
        assert decoding._count_pairs(data, b"\xff\xda", place) == data.count(b"\xff\xda", place)


def test_a_png_that_was_cut_is_right_or_refused():
    pixels = noise(40, 40)
    data = encoded(Image.fromarray(pixels), "PNG")
    whole, right = load(data), 0
    for cut in range(len(data) - 60, len(data)):
        try:
            found = load(data[:cut])
        except PictureError:
            continue
        assert (found == whole).all()
        right += 1
    assert right >= 12  # the end chunk may be missing


def repacked(data: bytes, change) -> bytes:
    """A PNG of one IDAT chunk whose unpacked rows are changed, and packed again without a fault."""
    place = data.index(b"IDAT")
    end = place + 4 + int.from_bytes(data[place - 4 : place], "big")
    return (
        data[: place - 4]
        + chunk(b"IDAT", zlib.compress(change(zlib.decompress(data[place + 4 : end]))))
        + data[end + 4 :]
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("value", [0, 7])
def test_a_png_whose_data_end_between_two_rows_is_damaged(interlaced, value):
    """Pillow left the rows that are missing black, and said nothing."""
    import raw_pictures as raw

    data = raw.png(np.full((16, 16, 3), value), 8, 2, interlaced=interlaced)
    assert np.all(load(data) == value)
    assert np.all(load(repacked(data, lambda rows: rows + bytes(60))) == value)  # more than there should be
    lengths = [1 + 3 * 16] * 16 if not interlaced else [7] * 2 + [7] * 2 + [13] * 2 + [13] * 4 + [25] * 4 + [25] * 8
    for lacking in np.cumsum((lengths + [49] * 8 * interlaced)[::-1])[:-1]:
        assert "PNG data is damaged or incomplete" in refusal(repacked(data, lambda rows, n=lacking: rows[:-n]))


@pytest.mark.parametrize(("depth", "colour", "channels"), [(1, 0, 1), (2, 3, 1), (16, 0, 1), (8, 4, 2), (16, 6, 4)])
def test_a_black_picture_is_whole(depth, colour, channels):
    import raw_pictures as raw

    palette = chunk(b"PLTE", bytes(12)) if colour == 3 else b""
    for interlaced in (False, True):
        data = raw.png(np.zeros((9, 11, channels), int), depth, colour, before=palette, interlaced=interlaced)
        assert np.all(load(data) == (255 if colour >= 4 else 0))


def test_chunks_of_a_png_that_are_missing_doubled_or_out_of_place():
    """Pillow shows a picture without its palette in black, and takes the last of two."""
    head = b"\x89PNG\r\n\x1a\n"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 3, 0, 0, 0))
    pixels, end = chunk(b"IDAT", zlib.compress(bytes(33 * 32))), chunk(b"IEND", b"")
    red, blue = chunk(b"PLTE", bytes(RED)), chunk(b"PLTE", bytes(BLUE))
    assert np.all(load(head + header + red + blue + pixels + end) == RED)
    assert np.all(load(head + header + red + pixels + blue + end) == RED)
    clear, opaque = chunk(b"tRNS", b"\0"), chunk(b"tRNS", b"\xff")
    assert np.all(load(head + header + red + clear + opaque + pixels + end) == 255)
    for parts in (
        header + pixels,
        header + pixels + red,
        header + chunk(b"PLTE", bytes(4)) + pixels,
        header + chunk(b"PLTE", bytes(771)) + pixels,
        red + header + pixels,
        header + header + red + pixels,
    ):
        assert "PNG data is damaged or incomplete" in refusal(head + parts + end)


def test_a_slow_tiff_does_not_hold_up_others(monkeypatch):
    """While one is decoded the lock that keeps Pillow quiet is free."""
    from PIL import TiffImagePlugin

    free, decode = [], TiffImagePlugin.TiffImageFile._load_libtiff

    def watched(self):
        free.append(decoding._quiet_lock.acquire(blocking=False))
        decoding._quiet_lock.release()
        return decode(self)

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "_load_libtiff", watched)
    assert_is_picture(load(encoded(Image.new("RGB", (40, 40)), "TIFF", compression="tiff_lzw")))
    assert free == [True]


def test_too_many_pixels_in_every_format(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA"):
        assert "pixels; scale it down first" in refusal(encoded(Image.new("RGB", (101, 1)), kind))
        assert_is_picture(load(encoded(Image.new("RGB", (10, 10)), kind)))


def test_pillows_own_limit_is_neither_changed_nor_leaked(monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    load(encoded(Image.new("RGB", (40, 40)), "WEBP"))
    assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.new("RGB", (300, 1)), "WEBP")
    try:
        assert_is_picture(load(data))
    except PictureError as error:
        assert "pixels; scale it down first" in str(error)  # noqa: PT017 - either is right, as Pillow's version has it


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_no_width_or_no_height(width, height):
    assert "PNG data is damaged or incomplete" in refusal(png_header(width, height))


def run_length(packed: bytes, bits: int = 8) -> bytes:
    """A BMP of 32x32 pixels and two colours in RLE."""
    colours = bytes((*BLUE[::-1], 0, *YELLOW[::-1], 0))
    header = struct.pack("<IiiHHIIiiII", 40, 32, 32, 1, bits, 1 if bits == 8 else 2, len(packed), 0, 0, 2, 0)
    offset = 14 + len(header) + len(colours)
    return b"BM" + struct.pack("<IHHI", offset + len(packed), 0, 0, offset) + header + colours + packed


@pytest.mark.parametrize(
    ("packed", "bits", "yellow"),
    [
        ("0001", 8, []),
        ("2001 0001", 8, [(31, slice(32))]),
        ("2001", 8, None),  # without the mark of the end rows are missing
        ("2001 00", 8, None),
        ("0000 0000 2001 0001", 8, [(29, slice(32))]),  # two rows that are empty
        ("2001 0000 0000 0501 0001", 8, [(31, slice(32)), (29, slice(5))]),
        ("0201 0002 0402 0301 0000 0101 0001", 8, [(31, slice(2)), (29, slice(6, 9)), (28, slice(1))]),
        ("0003 010101 00 0001", 8, [(31, slice(3))]),
        ("0004 0101", 8, None),
        ("0002 04", 8, None),
        ("2001 0000" * 31 + "2001", 8, [(slice(32), slice(32))]),  # complete without it
        ("ff01 0501 0000 0301 0001", 8, [(31, slice(32)), (30, slice(3))]),  # what is beyond the row is left out
        ("0002 00ff 2001", 8, []),
        ("0511 0001", 4, [(31, slice(5))]),
        ("0510 0001", 4, [(31, slice(0, 5, 2))]),
        ("0003 0110 0004 1111 0001", 4, [(31, slice(1, 3)), (31, slice(3, 7))]),
    ],
)
def test_rle_that_passes_over_pixels(packed, bits, yellow):
    """Pillow moved what follows an empty row, and called damaged what ends early."""
    data = run_length(bytes.fromhex(packed), bits)
    if yellow is None:
        assert "BMP data is damaged or incomplete" in refusal(data)
        return
    expected = np.full((32, 32, 3), BLUE, np.uint8)
    for place in yellow:
        expected[place] = YELLOW
    np.testing.assert_array_equal(load(data), expected)


def test_too_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 2**20)
    path = tmp_path / "long.bmp"
    path.write_bytes(bytes(2**20 + 1))
    assert refusal(path) == f"Could not read {path}: it is longer than 1 MiB; scale it down first."
    assert "longer than 1 MiB" in refusal(path.read_bytes())
    with Path("/dev/zero").open("rb") as endless:
        assert "/dev/zero: it is longer than 1 MiB" in refusal(endless)


class Trickle(io.RawIOBase):
    """A stream that gives a thousand bytes at most, whatever it is asked for, as a slow socket does."""

    def __init__(self, content: bytes) -> None:
        self._rest = io.BytesIO(content)

    def read(self, size: int = -1, /) -> bytes:
        return self._rest.read(min(size, 1000))


@pytest.mark.parametrize("stream", [io.BytesIO, Trickle])
@pytest.mark.parametrize("length", [1, 2**16, 2**16 + 1, 200_001])
def test_all_bytes_are_read_whatever_the_length_was_taken_for(monkeypatch, stream, length):
    content = np.random.default_rng(0).bytes(length)
    for taken_for in (0, 1, length - 1, length, length + 1, 3 * length):
        assert pictures.read_bounded(stream(content), taken_for) == content
    monkeypatch.setattr(pictures, "MAX_BYTES", length // 2)
    for taken_for in (0, length, 3 * length):
        assert pictures.read_bounded(stream(content), taken_for) == content[: length // 2 + 1]


def test_too_little_memory(monkeypatch):
    def fail(*_args):
        raise MemoryError

    monkeypatch.setattr(pictures, "decode", fail)
    assert "takes more memory than is free" in refusal(encoded(Image.new("RGB", (4, 4)), "PNG"))


def test_an_interrupt_is_not_swallowed(monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(encoded(Image.new("RGB", (4, 4)), "PNG"))


def test_unknown_fit():
    assert refusal(b"", fit="stretch") == "There is no fit 'stretch': choose one of crop, squash, pad."


def test_a_given_name_is_what_messages_say():
    assert refusal(b"text", name="upload 3").startswith("Could not read upload 3: ")


# other sources, sizes and contracts


def test_a_pillow_picture_and_an_array_give_the_same_as_their_file():
    pixels = noise(50, 40)
    image = Image.fromarray(pixels)
    right = load(encoded(image, "PNG"))
    np.testing.assert_array_equal(load(image), right)
    np.testing.assert_array_equal(load(pixels), right)
    np.testing.assert_array_equal(load(pixels[:, ::-1][:, ::-1]), right)
    np.testing.assert_array_equal(load(Image.open(io.BytesIO(encoded(image, "PNG")))), right)


def test_a_pillow_picture_is_turned_laid_over_white_and_left_as_it_was():
    upright = noise(40, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.open(
        io.BytesIO(encoded(Image.fromarray(np.ascontiguousarray(STORED[6](upright))), "PNG", exif=exif))
    )
    np.testing.assert_array_equal(load(stored), upright[4:36])
    assert stored.size == (40, 32)
    clear = Image.new("RGBA", (32, 32), (9, 9, 9, 0))
    assert np.all(load(clear) == 255)
    assert clear.getpixel((0, 0)) == (9, 9, 9, 0)


@pytest.mark.parametrize(
    "array", [noise(8, 8).astype(np.float32), noise(8, 8)[..., 0], noise(8, 8, 4), noise(8, 8)[:0], noise(8, 8)[None]]
)
def test_another_kind_of_array_is_refused(array):
    message = refusal(array)
    assert str(array.dtype) in message
    assert "uint8 [height, width, 3]" in message


def test_too_many_pixels_in_memory(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    assert "pixels; scale it down first" in refusal(np.zeros((1, 101, 3), np.uint8))
    assert "pixels; scale it down first" in refusal(Image.new("RGB", (101, 1)))


def test_the_contract_gives_the_size_and_the_fit():
    contract = Contract(("cat", "dog"), 24)
    assert load_picture(noise(40, 60), contract).shape == (24, 24, 3)
    padded = contract.with_fit("pad")
    picture = np.zeros((12, 24, 3), np.uint8)
    loaded = load_picture(picture, padded)
    assert np.all(loaded[:6] == 128)
    assert np.all(loaded[6:18] == 0)
    assert np.all(load_picture(picture, padded, "crop") == 0)


def test_a_turned_picture_is_cropped_as_it_stands_upright():
    upright = noise(32, 37)
    for orientation, turn in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(turn(upright)))
        np.testing.assert_array_equal(load(encoded(stored, "PNG", exif=exif)), upright[:, 2:34])


def test_several_threads_read_damaged_metadata_in_silence():
    from concurrent.futures import ThreadPoolExecutor

    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 2, 0x010F, 2, 999, 500) + b"\x12"
    data = [encoded(Image.new("RGB", (32, 32), (90, 90, 90)), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.all(pixels == 90) for pixels in pool.map(load, data * 40))
    assert warnings.filters == before


def test_heic_without_what_reads_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.reader.cache_clear()
    message = refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    formats.reader.cache_clear()
    assert "pip install" in message
    assert "pillow-heif" in message


SAMPLES = [
    *(encoded(Image.fromarray(noise(20, 24)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
    *(encoded(Image.fromarray(noise(20, 24)), kind) for kind in ("AVIF", "JPEG2000", "ICO", "TGA", "PPM", "MPO")),
    encoded(Image.fromarray(noise(20, 24, 4)), "PNG"),
    encoded(Image.fromarray(noise(20, 24, 4)), "WEBP"),
    encoded(Image.fromarray(noise(20, 24)).quantize(16), "GIF", transparency=3),
    encoded(Image.fromarray(noise(20, 24)), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(noise(20, 24)[..., 0].astype(np.uint16) * 257), "PNG"),
    encoded(Image.fromarray(noise(20, 24)[..., 0].astype(np.float32)), "TIFF"),
]


@settings(deadline=None, max_examples=60, database=None)
@given(
    data=st.sampled_from(SAMPLES),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    in_header=st.booleans(),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    fit=st.sampled_from(FITS),
)
def test_whatever_happens_to_the_bytes_no_other_exception_escapes(data, edits, in_header, keep, fit):
    mutated = bytearray(data)
    for place, byte in edits:
        mutated[int(place * (min(64, len(data)) if in_header else len(data)))] = byte
    try:
        assert_is_picture(load(bytes(mutated[: int(len(mutated) * keep)]), fit))
    except PictureError as error:
        assert str(error).startswith("Could not read the given bytes: ")  # noqa: PT017 - both outcomes are right


@settings(deadline=None, max_examples=30, database=None)
@given(
    start=st.sampled_from([b"", b"BM", b"GIF89a", b"\xff\xd8\xff", b"II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n"]),
    rest=st.binary(max_size=200),
)
def test_random_bytes_are_refused_or_read(start, rest):
    try:
        assert_is_picture(load(start + rest))
    except PictureError as error:
        assert str(error).startswith("Could not read the given bytes: ")  # noqa: PT017 - both outcomes are right
