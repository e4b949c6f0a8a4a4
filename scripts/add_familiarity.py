#!/usr/bin/env python3
"""Give the int8 models of a bundle the familiarity score; what they said before, they say bit for bit.

    python scripts/add_familiarity.py BUNDLE --data DIR [--measured RESULTS.json] [--out FOLDER]

Without --out the bundle is replaced, in one step. The score is learnt from the training pictures that the net was
trained on, and its threshold set on those that were held out, as `edgecifar export` does it; a bundle that is exported
today has it already. With --measured, what benchmarks/unknown.py kept is written into the manifest and the card; a
bundle that has the score keeps it then. A signature was made over other files and is left out: sign the new bundle.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from upgrade_bundle import intact, make

from edgecifar import Bundle, EdgecifarError
from edgecifar.export import build, familiarity
from edgecifar.runtime import golden
from edgecifar.runtime.files import new_folder, write_file
from edgecifar.runtime.manifest import BOM, CARD, GOLDEN, MANIFEST, SUMS, Variant
from edgecifar.runtime.session import Session
from edgecifar.train import data as datasets
from edgecifar.train.folders import FolderOptions

log = logging.getLogger("edgecifar")


def examples_of(bundle: Bundle, data: str | None) -> familiarity.Examples:
    """Return the pictures that the score is learnt from and set by.

    Raises:
        EdgecifarError: the data set is not the one that the net was trained on.
    """
    origin = bundle.manifest.provenance
    dataset = datasets.load(data, options=FolderOptions.recorded(origin["dataset"].get("origin", {})))
    if dataset.digest != origin["dataset"]["sha256"]:
        raise EdgecifarError(f"The bundle was trained on {bundle.manifest.dataset}, not on this {dataset.name}.")
    return familiarity.Examples.of_dataset(dataset, origin["recipe"]["held_out"])


def with_score(bundle: Bundle, variant: Variant, examples: familiarity.Examples) -> tuple[bytes, Variant]:
    """Return the model file of a variant with the score, and the variant's entry in the manifest.

    Raises:
        EdgecifarError: the model says other things than before.
    """
    before = bundle.read(variant)
    contract = replace(bundle.contract, familiarity_name=familiarity.NAME)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / variant.file
        path.write_bytes(before)
        added = familiarity.add(path, contract, examples)
        content = path.read_bytes()
    images, plain = examples.drawn, Session(before, provider="cpu", threads=1)
    scored = Session(content, provider="cpu", threads=1)
    for old, new in zip(plain.outputs(images), scored.outputs(images), strict=False):
        if not np.array_equal(old, new):
            raise EdgecifarError(f"{variant.file} would say other things with the score: nothing was changed.")
    log.info("%s: %s bytes more, %s", variant.file, len(content) - len(before), added.threshold)
    sized = replace(variant, bytes=len(content), sha256=sha256(content).hexdigest(), familiarity=added.threshold)
    return content, sized


def rewrite(source: Path, out: Path, data: str | None, measured: Path | None) -> Bundle:
    """Write the bundle in `source` with the score to `out`, which may be `source`, and return it.

    Raises:
        EdgecifarError: the bundle is damaged or of another data set, or it cannot be written.
    """
    bundle = intact(source)
    manifest, models = bundle.manifest, {v.file: bundle.read(v) for v in bundle.manifest.variants}
    if manifest.contract.familiarity_name is None:
        examples = examples_of(bundle, data)
        made = [with_score(bundle, variant, examples) for variant in manifest.variants]
        models = {variant.file: content for content, variant in made}
        contract = replace(manifest.contract, familiarity_name=familiarity.NAME)
        manifest = replace(manifest, contract=contract, variants=tuple(variant for _, variant in made))
    if measured:
        found = figures(measured)
        manifest = replace(manifest, variants=tuple(with_figures(v, found) for v in manifest.variants))
    contract = manifest.contract
    sessions = {v.name: Session(models[v.file], contract=contract, provider="cpu") for v in manifest.variants}
    images, vectors = bundle.golden()
    scores = {name: lambda some, each=each: each.outputs(some)[2] for name, each in sessions.items()}
    vectors |= {f"{contract.familiarity_name}/{name}": score(images) for name, score in scores.items()}
    arrays = io.BytesIO()
    np.savez(arrays, **{contract.input_name: images, **vectors})  # pyright: ignore[reportArgumentType]: no array is called allow_pickle
    with new_folder(out, replace=out.resolve() == source.resolve()) as folder:
        kept = bundle.sums.keys() - {MANIFEST, CARD, BOM, GOLDEN, SUMS, *models}
        for name in kept:
            write_file(folder / name, bundle.file(name))
        for name, content in models.items():
            write_file(folder / name, content)
        write_file(folder / GOLDEN, arrays.getvalue())
        probabilities = {name: each.probabilities for name, each in sessions.items()}
        golden.write(folder, contract, probabilities, scores)
        build.describe(folder, manifest)
    return Bundle.open(out)


def figures(measured: Path) -> dict[str, dict[str, Any]]:
    """Return the rows that benchmarks/unknown.py kept, by their models' names.

    Raises:
        EdgecifarError: it is no such file, or was not measured on the kinds that are reported.
    """
    try:
        document = json.loads(measured.read_bytes())
        kinds, found = document["settings"].get("kinds"), {row["model"]: row for row in document["rows"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EdgecifarError(f"{measured} is no file of benchmarks/unknown.py's ({error}): name one.") from None
    if kinds != "reported":
        raise EdgecifarError(f"{measured} was not measured on the kinds that are reported: measure it on those.")
    return found


def with_figures(variant: Variant, found: Mapping[str, dict[str, Any]]) -> Variant:
    """Return a variant with what benchmarks/unknown.py measured of its score, its row in `found`.

    Raises:
        EdgecifarError: there is no such row, or it is of another threshold.
    """
    score = variant.familiarity
    if score is None:
        return variant
    if variant.name not in found:
        raise EdgecifarError(f"There are no figures of {variant.name}: measure it, too.")
    row = found[variant.name]
    if row["threshold"] != score.threshold:
        raise EdgecifarError(f"The figures are of another {variant.name}, by its threshold: measure this one.")
    other = {"images": row["images"], "auroc": round(row["auroc"], 4), "passed": round(row["passed"], 4)}
    known = {"images": row["known"]["images"], "passed": round(row["known"]["passed"], 4)}
    return replace(variant, familiarity=replace(score, measured={**score.measured, "other": other, "test": known}))


def main() -> None:
    """Parse the arguments, add the score, and say what was made."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="the bundle to change")
    parser.add_argument("--data", help="folder with the CIFAR-10 files; by default $EDGECIFAR_DATA")
    parser.add_argument("--measured", type=Path, help="results of benchmarks/unknown.py for manifest and card")
    parser.add_argument("--out", type=Path, help="the folder to make; by default the bundle is replaced")
    given = parser.parse_args()
    out = given.out or given.bundle
    make("add_familiarity", lambda: rewrite(given.bundle, out, given.data, given.measured))


if __name__ == "__main__":
    main()
