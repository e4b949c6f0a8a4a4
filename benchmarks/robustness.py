"""Gives edgecifar's runtime tens of thousands of hostile inputs; only an answer or a refusal in a sentence is right.

    python benchmarks/robustness.py --cases 20000

Every case is a function of (seed, index): `--case INDEX` runs one again in this process, with its traceback. The cases
run in processes of their own with a limit on their address space, so that a crash is counted and known by its case;
the files of each failed case are kept. After every case the intact bundle must still give the same bits.

    accepted   there was an answer, of the right kind
    refused    an EdgecifarError: one printable sentence
    traceback  any other exception
    crash      the process died, or did not answer in time
    wrong      damage that was not found, or an answer that differs from what it must be
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgecifar.runtime import Bundle, Classifier, EdgecifarError
from edgecifar.runtime.bundle import DEFAULT, GOLDEN, MANIFEST, SUMS
from edgecifar.runtime.errors import BundleError
from edgecifar.runtime.machine import describe, usable_cpus
from edgecifar.runtime.contract import CIFAR10, FITS
from edgecifar.runtime.pictures import load_picture
from edgecifar.runtime.sources import find_pictures

TINY = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny_bundle"
CHUNK = 1000
"""Cases that one process runs, at most."""
ADDRESS_SPACE = 6 << 30
"""Bytes that a process may map; what takes more must fail as memory that runs out."""
PEAK = 2 << 30
"""Bytes of memory in use at which a run has failed."""
SECONDS = 300
"""After which a case that has not ended counts as a crash."""
STARTING = 600
"""Seconds that a process may take to start."""
FAILURES = ("traceback", "crash", "wrong")


class WrongAnswer(Exception):  # noqa: N818 - it is a finding, not an error of this program
    """Something was taken for right that is not."""


@dataclass
class Case:
    """One input: what `run` returns or raises is the outcome; `files` and `note` are what is kept of a failure."""

    run: Callable[[World], object]
    files: dict[str, bytes] = field(default_factory=dict)
    note: str = ""


class World:
    """What the cases of one process share: copies of two bundles to damage, and an intact classifier beside them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.folders = {source: Path(shutil.copytree(source, scratch / source.name)) for source in (TINY, DEFAULT)}
        self.guard = Classifier(TINY, provider="cpu", threads=1)
        self.images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        self.expected = self.guard.probabilities(self.images).tobytes()

    @contextlib.contextmanager
    def changed(self, source: Path, files: dict[str, bytes]) -> Iterator[Path]:
        """Write `files` into the copy of the bundle `source`; as it was afterwards."""
        folder = self.folders[source]
        for name, content in files.items():
            (folder / name).write_bytes(content)
        try:
            yield folder
        finally:
            for name in files:
                (folder / name).write_bytes(contents(source)[name])


@cache
def contents(source: Path) -> dict[str, bytes]:
    """Return the files of an intact bundle."""
    return {path.name: path.read_bytes() for path in sorted(source.iterdir())}


def sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Add the SHA256SUMS that make changed `files` of the tiny bundle agree, as somebody with bad intentions would."""
    everything = {**contents(TINY), **files}
    sums = "".join(f"{sha256(content).hexdigest()}  {name}\n" for name, content in everything.items() if name != SUMS)
    return {**files, SUMS: sums.encode()}


# mutations of bytes


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    place = rng.randrange(8 * len(data))
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave out the end."""
    return data[: rng.randrange(len(data))]


def remove(data: bytes, rng: random.Random) -> bytes:
    """Leave out a part."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 64) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Say a part twice, or many times."""
    start, size = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:start] + data[start : start + size] * rng.choice((2, 2, 100)) + data[start + size :]


def scribble(data: bytes, rng: random.Random) -> bytes:
    """Write noise over a part."""
    start = rng.randrange(len(data))
    noise = rng.randbytes(rng.randint(1, 32))
    return data[:start] + noise + data[start + len(noise) :]


def exaggerate(data: bytes, rng: random.Random) -> bytes:
    """Put an extreme number somewhere, most often where headers are."""
    number = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 30000, 100000))
    packed = struct.pack(rng.choice("<>") + "I", number)
    packed = packed if rng.random() < 0.5 else packed[:2] if packed[2:] == b"\0\0" else packed[2:]
    start = rng.randrange(min(64, len(data)) if rng.random() < 0.7 else len(data))
    return data[:start] + packed + data[start + len(packed) :]


MUTATIONS = (flip, cut, remove, repeat, scribble, exaggerate)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Apply one to four mutations."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(MUTATIONS)(data, rng) if data else data
    return data


# pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def mend_png(data: bytes) -> bytes:
    """Make the checksums of a PNG's chunks agree, so that its parsers are reached."""
    mended, place = data[:8], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        mended += chunk(data[place + 4 : place + 8], data[place + 8 : place + 8 + size])
        place += 12 + size
    return mended


READ = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "ICO", "TGA", "PPM", "MPO")
OTHERS = ("PCX", "SGI", "DDS", "QOI", "ICNS", "IM")
COMPRESSIONS = ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4", "lzma", "zstd")
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (56, 40), "red")]}


@cache
def seeds() -> dict[str, bytes]:
    """Draw a small picture, and encode it in every format, mode and compression that Pillow can write here."""
    y, x = np.mgrid[0:40, 0:56]
    drawn = np.stack([x * 4, y * 6, (x * y) % 256, 255 - x], axis=-1).astype(np.uint8)
    rgba = Image.fromarray(drawn)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(drawn[..., 2].astype(np.uint16) * 200)
    modes = {mode: rgb.convert(mode) for mode in ("RGB", "L", "CMYK", "YCbCr", "LAB", "1", "P")}
    modes |= {"RGBA": rgba, "LA": rgba.convert("LA"), "I;16": deep, "F": grey.convert("F"), "I": grey.convert("I")}
    exif = Image.Exif()
    exif[0x0112] = 6
    ways: dict[str, list[dict[str, Any]]] = {
        "PNG": [{"exif": exif}, FRAMES, {"transparency": 3}, {"compress_level": 0}],
        "JPEG": [{"exif": exif}, {"progressive": True}, {"quality": 5, "optimize": True}],
        "GIF": [FRAMES, {"transparency": 3, "interlace": 0}],
        "BMP": [{}],
        "WEBP": [{"exif": exif}, FRAMES, {"lossless": True}],
        "TIFF": [{"exif": exif}, FRAMES, *({"compression": name} for name in COMPRESSIONS)],
    }
    found = {}
    for kind in (*READ, *OTHERS):
        for mode, image in (modes if kind in READ else {"RGB": rgb}).items():
            for number, options in enumerate(ways.get(kind, [{}])):
                file = io.BytesIO()
                with contextlib.suppress(Exception):  # a combination that Pillow cannot write
                    image.save(file, kind, **options)
                    found.setdefault(file.getvalue(), f"{kind} {mode} {number}")
    return {name: data for data, name in found.items()}


def picture(rng: random.Random) -> Case:
    """Draw a picture in any format, mutated; a few stay as they are."""
    names = [name for name in seeds() if name.split()[0] in READ] if rng.random() < 0.9 else list(seeds())
    name, intact = rng.choice(names), rng.random() < 0.02
    data = seeds()[name] if intact else mutated(seeds()[name], rng)
    if name.startswith("PNG") and rng.random() < 0.7:
        data = mend_png(data)
    return looked_at(data, rng.choice(FITS), name, must=intact and name.split()[0] in READ)


def bomb(rng: random.Random) -> Case:
    """Claim a huge size in a header, or unpack to a lot."""
    side = lambda: rng.choice((0, 1, 7999, 8001, 32767, 65535, 2**31 - 1, 2**32 - 1, rng.randrange(2**32)))  # noqa: E731
    width, height = side(), side()
    name = rng.choice([name for name in seeds() if name.split()[0] in READ])
    data = seeds()[name]
    if name.startswith("PNG"):
        header = struct.pack(">II", width, height) + bytes(
            [rng.choice((1, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, 0]
        )
        much = zlib.compress(bytes(rng.choice((1, 10**5, 10**7))), 9)
        extra = rng.choice((b"", chunk(b"zTXt", b"a\0\0" + much), chunk(b"iCCP", b"a\0\0" + much)))
        parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", much) + chunk(b"IEND", b"")
        return looked_at(data[:8] + parts, rng.choice(FITS), "PNG bomb")
    size = (
        struct.pack(rng.choice("<>") + "II", width, height)
        if rng.random() < 0.5
        else struct.pack(rng.choice("<>") + "HH", width & 0xFFFF, height & 0xFFFF)
    )
    actual = [struct.pack(order + code, 56) for order in "<>" for code in "HI"]  # the width as the seeds have it
    places = [place for place in range(min(len(data), 400)) if any(data.startswith(a, place) for a in actual)]
    place = rng.choice(places or [rng.randrange(len(data))])
    return looked_at(data[:place] + size + data[place + len(size) :], rng.choice(FITS), f"{name} bomb")


def looked_at(data: bytes, fit: str, note: str, must: bool = False) -> Case:
    """Return the case of a picture's bytes, read twice: what is not of the file would differ."""

    def run(world: World) -> None:  # noqa: ARG001
        try:
            pixels = load_picture(data, CIFAR10, fit)
        except EdgecifarError:
            if must:
                raise WrongAnswer("an intact picture was refused") from None
            raise
        if (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) != (np.uint8, (32, 32, 3), True):
            raise WrongAnswer(f"it became {pixels.dtype} {pixels.shape}")
        if not np.array_equal(pixels, load_picture(data, CIFAR10, fit)):
            raise WrongAnswer("it is read differently the second time")

    return Case(run, {"picture": data}, f"{note}, {fit}")


# bundles


def unsealed(rng: random.Random) -> Case:
    """Damage a file of a bundle whose digests stay as they are: by one bit, by more, or by another file's content."""
    source = DEFAULT if rng.random() < 0.05 else TINY
    name, content = rng.choice(list(contents(source).items()))
    how = rng.choice((flip, flip, cut, mutated, swapped))
    damaged = how(content, rng)

    def run(world: World) -> str:
        with world.changed(source, {name: damaged}) as folder:
            problems = damage(folder)
            if bool(problems) != (damaged != content):
                raise WrongAnswer(
                    f"{name} is {'intact' if damaged == content else 'damaged'}: {problems or 'none found'}"
                )
            if name.endswith(".onnx") and problems:
                model = next(v.name for v in Bundle.open(folder).manifest.variants if v.file == name)
                with contextlib.suppress(BundleError):
                    Classifier(folder, model, "cpu", 1)
                    raise WrongAnswer("a damaged model was loaded")
        return "refused" if problems else "accepted"

    return Case(run, {name: damaged}, f"{how.__name__} {source.name}/{name}")


def swapped(content: bytes, rng: random.Random) -> bytes:  # noqa: ARG001
    """Take another file's content."""
    return rng.choice(list(contents(TINY).values()))


def damage(folder: Path) -> list[str]:
    """Return what `verify` finds wrong."""
    try:
        return [f"{check.name}: {check.detail}" for check in Bundle.open(folder).verify() if not check.passed]
    except EdgecifarError as error:
        return [str(error)]


def resealed(files: dict[str, bytes], note: str) -> Case:
    """Return the case of a tiny bundle with new digests: it answers, and verifies honestly, or is refused."""

    def run(world: World) -> None:
        with world.changed(TINY, sealed(files)) as folder:
            bundle = Bundle.open(folder)
            if json.loads(bundle.manifest.as_json()) != json.loads((folder / MANIFEST).read_bytes()):
                raise WrongAnswer("the manifest was read as something else")
            verified = {check.name for check in bundle.verify() if check.passed}
            for variant in bundle.manifest.variants:
                classifier = Classifier(bundle, variant.name, "cpu", 1)
                answers = classifier.probabilities(world.images)
                if (answers.dtype, answers.shape) != (np.float32, (8, 10)):
                    raise WrongAnswer(f"the answers are {answers.dtype} {answers.shape}")
                images, expected = bundle.golden()
                golden = expected.get(variant.name, np.full((len(images), 10), np.nan))
                same = np.abs(classifier.probabilities(images) - golden).max() <= variant.golden_tolerance
                if same != (f"golden vectors of {variant.name}" in verified):
                    raise WrongAnswer(f"verify is wrong about the golden vectors of {variant.name}")

    return Case(run, files, note)


STRANGE: tuple[Any, ...] = (None, True, -1, 0, 1, 0.5, 1e308, 10**400, 2**63, float("nan"), float("inf"), [], {}, [[]])
STRANGE += ("", "fp32", "model.onnx", "onnx", "\0", "\x1b[2J", "\ud800", "../x", "/etc/passwd", "a" * 10**5, [1] * 1000)


def manifest(rng: random.Random) -> Case:
    """Change manifest.json by its structure, and sometimes its text; the digests agree."""
    values, original = (json.loads(contents(TINY)[MANIFEST]) for _ in range(2))
    for _ in range(rng.randint(1, 3)):
        place = values
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.25:
                break
            place = place[key]
        how = rng.randrange(8)
        if how < 4:
            place[key] = rng.choice(STRANGE)
        elif how == 4:
            place[key] = rng.choice((*original.values(), *original["variants"][0].values()))
        elif how == 5:
            place[key] = json.loads("[" * 500 + "]" * 500)
        elif how == 6 and isinstance(place, dict):
            place[str(rng.choice(STRANGE))] = rng.choice(STRANGE)
        elif len(place) > 1:
            del place[key]
    text = json.dumps(values, indent=rng.choice((None, 2))).encode()
    return resealed({MANIFEST: mutated(text, rng) if rng.random() < 0.3 else text}, "manifest")


def model(rng: random.Random) -> Case:
    """Damage a model, or take the other's place; the manifest and the digests agree."""
    values = json.loads(contents(TINY)[MANIFEST])
    variant = rng.choice(values["variants"])
    content = mutated(rng.choice([contents(TINY)[v["file"]] for v in values["variants"]]), rng)
    variant |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    return resealed({variant["file"]: content, MANIFEST: json.dumps(values).encode()}, "model")


def golden(rng: random.Random) -> Case:
    """Damage golden.npz, as bytes or as arrays; the digests agree."""
    content = contents(TINY)[GOLDEN]
    if rng.random() < 0.5:
        return resealed({GOLDEN: mutated(content, rng)}, "golden bytes")
    arrays = dict(np.load(io.BytesIO(content)))
    name = rng.choice(list(arrays))
    if rng.random() < 0.5:
        strange = strange_array(rng)
        arrays[rng.choice((name, "other", "a/b", "../a"))] = strange if strange.size < 10**6 else strange[:2]
    else:
        arrays[name] = rng.choice(
            (arrays[name][:1], arrays[name][::-1], arrays[name] + 1, arrays[name] * np.float32("nan"))
        )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in arrays.items():
            saved = io.BytesIO()
            np.save(saved, array, allow_pickle=array.dtype.hasobject)
            data = saved.getvalue()
            archive.writestr(f"{name}.npy", data if rng.random() < 0.7 else mutated(data[:128], rng) + data[128:])
    return resealed({GOLDEN: file.getvalue()}, "golden arrays")


# arrays and folders

DTYPES = (*["u1"] * 6, *[">u1", "i1", "?", "u2", "f2", "f4", "f8", "c8", "O", "S1", "U1", "M8[s]", "V3"])
IMAGES = (4, 32, 32, 3)
SHAPES = [IMAGES] * 8 + [(n, 32, 32, 3) for n in (0, 1, 65)] + [(32, 32, 3), (4, 3, 32, 32), (), (0,), (4, 3072)]
SHAPES += [(4, 32, 32, 1), (4, 32, 32, 4), (2, *IMAGES), (4, 31, 32, 3)]


def strange_array(rng: random.Random) -> np.ndarray:
    """Return an array of any dtype, shape and memory layout, NaN among the floats; one in a hundred is endless."""
    dtype, shape = np.dtype(rng.choice(DTYPES)), rng.choice(SHAPES)
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    array = np.full(shape, None) if dtype.hasobject else noise.view(dtype)[..., 0]
    if dtype.kind == "f" and array.size:
        array.flat[0] = np.nan
    layouts: tuple[Callable[[], np.ndarray], ...] = (
        lambda: array,
        lambda: np.asfortranarray(array),
        lambda: np.repeat(array, 2, axis=0)[::2],
        lambda: np.repeat(array, 2, axis=-1)[..., ::2],
        lambda: np.flip(array),
        lambda: array.swapaxes(-2, -3),
        lambda: np.broadcast_to(array[:1], (3 if rng.random() < 0.9 else 10**8, *shape[1:])),
        lambda: np.ma.masked_array(array, mask=False),
    )
    array = rng.choice(layouts)() if array.size and array.ndim > 2 else array
    array.flags.writeable = array.flags.writeable and rng.random() < 0.5
    return array


def array(rng: random.Random) -> Case:
    """Take any array for pictures; those that are must give what a plain copy gives."""
    images = strange_array(rng)
    rest = (rng.choice((1, 3, 10, 0, 11, -1)), rng.random() < 0.3)

    def run(world: World) -> None:
        right = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1:] == (32, 32, 3)
        top_k, predict = rest
        if predict and len(images.shape) and len(images) < 1000:
            if len(world.guard.predict(images, top_k)) != len(images) or not (right and 1 <= top_k <= 10):
                raise WrongAnswer("it was taken")
            return
        answers = world.guard.probabilities(images)
        plain = np.array(images, np.uint8, order="C", subok=False)
        if not right or answers.tobytes() != world.guard.probabilities(plain).tobytes():
            raise WrongAnswer("it was taken, or the layout in memory counts")

    return Case(run, {}, f"{images.dtype} {images.shape} strides {images.strides} {type(images).__name__} {rest}")


def folder(rng: random.Random) -> Case:
    """Fill a folder with thousands of files of odd names and contents, links and a pipe; each gives one result."""
    odd = ("", "-", "a b", "\n", "\x1b[2J", "\udcff", "é", "*?[", "x" * 200)
    names = [f"{rng.choice(odd)}{number}.{rng.choice(('png', 'JPG', 'gif', 'tiff'))}" for number in range(2000)]
    pictures = list(seeds().values())

    def run(world: World) -> None:
        with tempfile.TemporaryDirectory(dir=world.scratch) as place:
            for number, name in enumerate(names):
                path = Path(place, name)
                how = rng.randrange(20)
                if how == 0:
                    path.mkdir()
                elif how == 1:
                    path.symlink_to(rng.choice((".", "missing", path.name, "/dev/null", "/proc/self/mem")))
                elif how == 2 and number % 50 == 0:
                    os.mkfifo(path)
                else:
                    data = rng.choice(pictures)
                    path.write_bytes(rng.choice((data, data[:200], b"", rng.randbytes(50))))
            found = find_pictures([place])
            if len(list(world.guard.stream(found))) != len(found) or len(found) < 1000:
                raise WrongAnswer("some were lost")

    return Case(run, {}, "folder")


KINDS: dict[str, tuple[int, Callable[[random.Random], Case]]] = {
    "picture": (11000, picture),
    "bomb": (1500, bomb),
    "unsealed bundle": (2500, unsealed),
    "manifest": (2500, manifest),
    "model": (800, model),
    "golden": (700, golden),
    "array": (2000, array),
    "folder": (4, folder),
}
"""Name of a kind of case: (its share, what makes one)."""


def case(seed: int, index: int) -> tuple[str, Case]:
    """Make a case."""
    rng = random.Random(f"{seed}/{index}")  # noqa: S311
    kind = rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
    return kind, KINDS[kind][1](rng)


# the processes that run them


def outcome(tried: Case, world: World) -> tuple[str, str]:
    """Run a case and return what came of it, with the details of a failure."""
    try:
        result = str(tried.run(world) or "accepted"), ""
    except EdgecifarError as error:
        said = str(error)
        plain = said.isprintable() and said.endswith(".")
        result = ("refused", "") if plain else ("wrong", f"refused, but not in a sentence: {said!r}")
    except WrongAnswer as error:
        result = "wrong", str(error)
    except Exception:
        result = "traceback", traceback.format_exc(limit=-4)
    if world.guard.probabilities(world.images).tobytes() != world.expected:
        return "wrong", f"the intact bundle gives other answers after this ({result})"
    return result


def work(connection: Any, scratch: str, seed: int, first: int, last: int) -> None:
    """Run the cases `first` to `last` of a process of our own; each is announced before it runs."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff's complaints
    world = World(Path(scratch))
    connection.send("ready")
    for index in range(first, last):
        kind, tried = case(seed, index)
        connection.send((kind, index))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        connection.send((*outcome(tried, world), peak))
    connection.close()


def supervise(seed: int, first: int, last: int, keep: Path) -> Iterator[tuple[str, str, int]]:
    """Run the cases `first` to `last` in processes that may die; yield kind, outcome and peak memory of each."""
    context = multiprocessing.get_context("spawn")
    while first < last:
        with tempfile.TemporaryDirectory() as scratch:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(theirs, scratch, seed, first, last))
            process.start()
            theirs.close()
            kind, index, peak = "", -1, 0
            try:
                receive(ours, STARTING)
                while first < last:
                    kind, index = receive(ours)
                    came, detail, peak = receive(ours)
                    if came in FAILURES:
                        remember(keep, seed, index, came, detail)
                    yield kind, came, peak
                    first = index + 1
            except (EOFError, TimeoutError) as error:
                process.kill()
                process.join()
                if index < first:
                    raise RuntimeError(f"the process ended between cases, before case {first}") from None
                reason = str(error) or f"the process ended with exit code {process.exitcode}"
                remember(keep, seed, index, "crash", reason)
                yield kind, "crash", peak
                first = index + 1
            process.join()


def receive(connection: Any, seconds: float | None = None) -> Any:
    """Return the next message of a process, by default within `SECONDS`."""
    seconds = seconds or SECONDS
    if not connection.poll(seconds):
        raise TimeoutError(f"no answer in {seconds} seconds")
    return connection.recv()


def remember(keep: Path, seed: int, index: int, came: str, detail: str) -> None:
    """Keep the files of a case that failed, and what happened."""
    kind, tried = case(seed, index)
    place = keep / f"{seed}-{index}-{came}"
    place.mkdir(parents=True, exist_ok=True)
    for name, content in tried.files.items():
        (place / name).write_bytes(content)
    (place / "case.txt").write_text(f"{kind}: {tried.note}\n{detail}\n", errors="backslashreplace")
    print(f"case {index} ({kind}: {tried.note}): {came}, kept in {place}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases, print the table and the line of JSON; return 1 if any failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="processes at a time")
    parser.add_argument("--keep", type=Path, default=Path("robustness-failures"), help="folder for failed cases")
    parser.add_argument("--case", type=int, help="run this case alone, in this process")
    options = parser.parse_args(arguments)
    if options.case is not None:
        kind, tried = case(options.seed, options.case)
        with tempfile.TemporaryDirectory() as scratch:
            print(kind, tried.note, *outcome(tried, World(Path(scratch))), sep="\n")
        return 0
    begin = time.perf_counter()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    peak = 0
    starts = range(0, options.cases, CHUNK)

    def part(start: int) -> list[tuple[str, str, int]]:
        return list(supervise(options.seed, start, min(start + CHUNK, options.cases), options.keep))

    with ThreadPoolExecutor(options.workers) as pool:
        for done, results in enumerate(pool.map(part, starts), 1):
            for kind, came, memory in results:
                counts[kind][came] += 1
                peak = max(peak, memory)
            print(f"{min(done * CHUNK, options.cases):,} cases, peak memory {peak / 2**20:.0f} MiB", file=sys.stderr)
    outcomes = ("accepted", "refused", *FAILURES)
    print(f"{'':16}{'cases':>8}" + "".join(f"{name:>11}" for name in outcomes))
    total = sum(counts.values(), Counter())
    for kind, count in {**counts, "all": total}.items():
        print(f"{kind:16}{count.total():8,}" + "".join(f"{count[name]:11,}" for name in outcomes))
    failures = sum(total[name] for name in FAILURES)
    report = {
        "benchmark": "robustness",
        "seed": options.seed,
        "cases": total.total(),
        "kinds": {kind: dict(count) for kind, count in counts.items()},
        "failures": failures,
        "peak_memory_bytes": peak,
        "peak_memory_allowed": PEAK,
        "address_space_bytes": ADDRESS_SPACE,
        "seconds": round(time.perf_counter() - begin, 1),
        "machine": describe(),
    }
    print(json.dumps(report))
    return int(failures > 0 or peak > PEAK)


if __name__ == "__main__":
    sys.exit(main())
