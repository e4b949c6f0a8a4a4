"""The model card: what a bundle holds, for a person; every figure comes from the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..runtime.manifest import BOM, GOLDEN, GOLDEN_PICTURES, MANIFEST, PARITY, SUMS, SYNTHETIC, Manifest, Variant
from ..runtime.metrics import wilson_interval
from ..train.nets import describe
from .parity import tested_images
from .provenance import Provenance

LISTED_LABELS = 20
"""A card names all labels where there are at most so many."""

FITS = {
    "crop": "Cut out the middle square and scale it to {size}x{size} pixels.",
    "squash": "Scale the picture to {size}x{size} pixels, whatever its shape.",
    "pad": "Scale the picture so that its longer side has {size} pixels, and put it into the middle of a grey square.",
}
"""How a picture becomes the input, by the contract's fit."""

NOTES = {
    SYNTHETIC: "**Trained on pictures that a program drew: a trial of the pipeline, of no use for photographs.**\n\n",
    "CIFAR-10": "The labels `plane` and `car` are CIFAR-10's `airplane` and `automobile`.\n\n",
}
"""What a reader must know of a data set of this name."""

TEMPLATE = """# edgecifar: {dataset} classifier

{note}Classifies a picture as one of {labels}. Made by `edgecifar export`.

## Use
Copy this folder to the device, as a whole.

    edgecifar predict photo.jpg --bundle THIS_FOLDER
    edgecifar verify THIS_FOLDER

Or with onnxruntime alone: input `{input}`, uint8 `[batch, {shape}]`, RGB, 0 to 255, no normalisation; outputs
{outputs}. {fit}
The filter and the other steps from a file to the input are in `{manifest}`; `{golden_pictures}` has pictures and the
arrays that they must become.

## Variants
| name | file | precision | bytes | accuracy | ECE | same class as the net |
|---|---|---|---|---|---|---|
{rows}

The default is `{default}`. {made_by}

{measured_on}
`{parity}` has the details, `{golden}` the probabilities that `edgecifar verify` expects on drawn pictures, `{bom}` the
bill of materials (CycloneDX), `{manifest}` all else, `{sums}` every digest (`sha256sum -c {sums}`).

## Training
{net}, by the recipe `{recipe}`:
{epochs_done} of {epochs} epochs, batch size {batch_size}, seed {seed}, on {training_images:,} {dataset} images{how}.
Temperature {temperature:.3f}{fitted}.

{familiarity}## Limits
- {classes:,} classes and nothing else: {others}
- Trained on {size}x{size} pictures. What is small or off-centre in a photograph is lost when it is scaled down.
- {calibrated}
"""


FAMILIARITY = """## None of these
`{output}` says how much a picture is like the training pictures; higher is more alike. A picture is known from the
variant's threshold on. It is learnt from drawn pictures and from parts of training pictures, not from real others.

| name | threshold | known of held-out | known of drawn | of other things | of test | AUROC, drawn | other things |
|---|---|---|---|---|---|---|---|
{rows}

Drawn: patterns, shapes, letters, noise, parts of pictures laid otherwise, of the sorts that the score was learnt from.
Other things: stamps, emoji, shapes, textures, text and noise of sorts that nothing was learnt from or chosen by. The
less of drawn and other pictures is known, the better. An AUROC of 50 % is chance.

"""


def _familiarity(manifest: Manifest) -> str:
    """Return the section on the familiarity; "" where the models have none."""
    name = manifest.contract.familiarity_name
    if name is None:
        return ""
    rows: list[str] = []
    for variant in manifest.variants:
        if not variant.is_onnx:
            continue
        if (score := variant.familiarity) is None:
            rows.append(f"| `{variant.name}` | none: too few held-out pictures | | | | | | |")
            continue
        drawn, other, test = (score.measured.get(key, {}) for key in ("drawn", "other", "test"))
        figures = [score.accepted, drawn.get("passed"), other.get("passed"), test.get("passed")]
        figures += [drawn.get("auroc"), other.get("auroc")]
        shown = " | ".join(_percent(figure) for figure in figures)
        rows.append(f"| `{variant.name}` | {score.threshold:.3f} | {shown} |")
    return FAMILIARITY.format(output=name, rows="\n".join(rows))


def _begun(origin: Provenance) -> str:
    """Return how images were shown, what the net began with and how classes counted, in words after those on images."""
    share = origin.recipe.get("corrupted")
    words = f", {100 * share:g} % of those shown corrupted" if share else ""
    if begun := origin.begun_from:
        part = "all layers" if begun["last_layer"] else "all layers but the last"
        words += (
            f", begun with {part} of another run (recipe `{begun['recipe']}`, {_escaped(begun['dataset']['name'])}, "
            f"weights {begun['weights_sha256'][:12]})"
        )
    return words + (", each class counting the same" if origin.recipe.get("balance") else "")


def _taught(origin: Provenance) -> str:
    """Return from what a net learnt beside the labels, in words that follow those on the images; "" where nothing."""
    teachers = origin.distillation["teachers"] if origin.distillation else []
    if not teachers:
        return ""
    recipes = ", ".join(f"`{teacher['recipe']['name']}`" for teacher in teachers)
    runs = f"{len(teachers)} other runs" if len(teachers) > 1 else "another run"
    return f", from the labels and from the answers of {runs} (by the recipe {recipes})"


def text(manifest: Manifest) -> str:
    """Return the model card of a bundle with this manifest.

    Raises:
        BundleError: the manifest's provenance lacks something.
    """
    origin, contract, first = Provenance.parse(manifest.provenance), manifest.contract, manifest.variants[0]
    rows = "\n".join(
        f"| `{v.name}` | `{v.file}` | {v.precision} | {v.bytes:,} | {_accuracy(v)} | "
        f"{_percent(v.parity['ece'])} | {v.parity['agree']:,} of {v.parity['images']:,} |"
        for v in manifest.variants
    )
    listed = contract.classes <= LISTED_LABELS
    outputs = [
        f"`{output['name']}`, {output['dtype']} `[{', '.join(map(str, output['shape']))}]`"
        for output in contract.as_json()["outputs"]
    ]
    return TEMPLATE.format(
        dataset=_escaped(manifest.dataset),
        note=NOTES.get(manifest.dataset, ""),
        labels=", ".join(map(_escaped, contract.labels)) if listed else f"{contract.classes:,} classes",
        input=contract.input_name,
        shape=", ".join(map(str, contract.picture_shape)),
        outputs=", ".join(outputs[:-1]) + f" and {outputs[-1]}",
        fit=FITS[contract.fit].format(size=contract.size),
        rows=rows,
        default=manifest.default_variant,
        made_by=" ".join(f"`{v.name}`: {v.made_by}." for v in manifest.variants),
        measured_on=_measured_on(manifest, first.parity),
        parity=PARITY,
        bom=BOM,
        golden=GOLDEN,
        golden_pictures=GOLDEN_PICTURES,
        manifest=MANIFEST,
        sums=SUMS,
        net=describe(origin.net, contract.classes),
        recipe=origin.recipe["name"],
        epochs_done=origin.epochs_done,
        epochs=origin.recipe["epochs"],
        batch_size=origin.recipe["batch_size"],
        seed=origin.seed,
        training_images=origin.training_images,
        how=_begun(origin) + _taught(origin),
        temperature=origin.temperature,
        fitted=f" fitted on {origin.calibrated_on}" if origin.calibrated_on else "",
        familiarity=_familiarity(manifest),
        others="a picture of something else gets one of them too, at times with confidence."
        if contract.familiarity_name is None
        else "a picture of something else gets one of them too, and is not always below the threshold.",
        classes=contract.classes,
        size=contract.size,
        calibrated="Confidence is calibrated for pictures like those of the data set, not for others."
        if origin.calibrated_on
        else "Confidence is not calibrated: no temperature was fitted on held-out images.",
    )


def _accuracy(variant: Variant) -> str:
    """Return the accuracy with its 95 % interval."""
    if variant.accuracy is None:
        return _percent(None)
    images = tested_images(variant.parity)
    low, high = wilson_interval(round(variant.accuracy * images), images)
    return f"{_percent(variant.accuracy)} ({100 * low:.1f} to {100 * high:.1f})"


def _measured_on(manifest: Manifest, parity: Mapping[str, Any]) -> str:
    """Return what the table's figures are of, as sentences."""
    agreement = f"{parity['images']:,} images ({_escaped(parity['data'])})"
    if manifest.variants[0].accuracy is None:
        return f"Agreement is on {agreement}. Accuracy was not measured."
    tested = tested_images(parity)
    if tested == parity["images"]:
        return (
            f"Accuracy (in brackets its 95 % interval), expected calibration error (ECE) and agreement: on {agreement}."
        )
    return (
        f"Accuracy (in brackets its 95 % interval) and expected calibration error (ECE) are on {tested:,} test "
        f"images.\nAgreement, which needs no labels, is on {agreement}."
    )


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


def _escaped(words: str) -> str:
    """Return a label or a name as Markdown shows it literally."""
    return re.sub(r"([\\`*_\[\]<>|~&#])", r"\\\1", words)
