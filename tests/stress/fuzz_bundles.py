"""Cases of robustness.py that are bundles: damaged with their old digests, or forged with new ones."""

from __future__ import annotations

import contextlib
import io
import json
import random
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_arrays import strange_array
from fuzz_world import TINY, Case, World, WrongAnswer, contents, cut, flip, mutated, sealed

from edgecifar.runtime import Bundle, Classifier, EdgecifarError
from edgecifar.runtime.bundle import DEFAULT
from edgecifar.runtime.errors import BundleError
from edgecifar.runtime.manifest import GOLDEN, MANIFEST


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


def swapped(content: bytes, rng: random.Random) -> bytes:
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
                if (answers.dtype, answers.shape) != (np.float32, (len(world.images), classifier.contract.classes)):
                    raise WrongAnswer(f"the answers are {answers.dtype} {answers.shape}")
                images, expected = bundle.golden()
                golden = expected.get(variant.name, np.full((len(images), bundle.contract.classes), np.nan))
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
