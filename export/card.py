"""The model card: what a bundle holds, for a person; every figure comes from the manifest."""

from __future__ import annotations

from ..runtime.bundle import BOM, GOLDEN, MANIFEST, PARITY, SUMS, Manifest

TEMPLATE = """# {title}

{warning}Classifies a picture as one of {labels}. Made by `edgecifar export`.

## Use
Copy this folder to the device, as a whole.

    edgecifar predict photo.jpg --bundle THIS_FOLDER
    edgecifar verify THIS_FOLDER

Or with onnxruntime alone: input `images`, uint8 `[batch, 32, 32, 3]`, RGB, 0 to 255, no normalisation; outputs
`probabilities` and `logits`, float32 `[batch, 10]`. Scale the picture's shorter side to 32 pixels, cut out the middle.

## Variants
| name | file | precision | bytes | accuracy | ECE | arg-max as the net | needs |
|---|---|---|---|---|---|---|---|
{rows}

The default is `{default}`. {made_by}

Accuracy, expected calibration error (ECE) and agreement: on {images:,} images ({data}). `{parity}` has the details,
`{golden}` the probabilities that `edgecifar verify` expects on drawn pictures, `{bom}` the bill of materials
(CycloneDX), `{manifest}` all else, `{sums}` every digest (`sha256sum -c {sums}`).

## Training
Net, six convolutions and three fully connected layers, 20,715,146 parameters, by the recipe `{recipe}`:
{epochs_done} of {epochs} epochs, batch size {batch_size}, seed {seed}, on {trained_on}.
Temperature {temperature:.3f}{fitted}.

## Limits
- Ten classes and nothing else: a picture of something else gets one of them too, at times with confidence.
- Trained on centred 32x32 pictures. What is small or off-centre in a photograph is lost when it is scaled down.
- {calibrated}
"""


def text(manifest: Manifest) -> str:
    """Return the model card of a bundle with this manifest."""
    origin = manifest.provenance
    first = manifest.variants[0]
    fitted = ""
    if origin["finished"] and "trial" in origin:  # there is no temperature before training ends
        fitted = " fitted on held-out images of a trial, the same training without them"
    elif origin["finished"] and origin["recipe"]["held_out"]:
        fitted = " fitted on held-out images"
    rows = "\n".join(
        f"| `{v.name}` | `{v.file}` | {v.precision} | {v.bytes:,} | {_percent(v.accuracy)} | "
        f"{_percent(v.parity['ece'])} | {v.parity['agree']:,} of {v.parity['images']:,} | "
        f"{v.needs.replace('|', ' or ')} |"
        for v in manifest.variants
    )
    synthetic = manifest.dataset != "CIFAR-10"
    return TEMPLATE.format(
        title=f"edgecifar: {manifest.dataset} classifier",
        warning=f"**Trained on {manifest.dataset} data, not on CIFAR-10: a trial of the pipeline.**\n\n"
        if synthetic
        else "",
        labels=", ".join(manifest.labels),
        rows=rows,
        default=manifest.default_variant,
        made_by=" ".join(f"`{v.name}`: {v.made_by}." for v in manifest.variants),
        images=first.parity["images"],
        data=first.parity["data"],
        parity=PARITY,
        bom=BOM,
        golden=GOLDEN,
        manifest=MANIFEST,
        sums=SUMS,
        recipe=origin["recipe"]["name"],
        epochs_done=origin["epochs_done"],
        epochs=origin["recipe"]["epochs"],
        batch_size=origin["recipe"]["batch_size"],
        seed=origin["seed"],
        trained_on=f"{origin['training_images']:,} {manifest.dataset} images",
        temperature=origin["temperature"],
        fitted=fitted,
        calibrated="Confidence is calibrated for pictures like those of the data set, not for others."
        if fitted
        else "Confidence is not calibrated: no temperature was fitted on held-out images.",
    )


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"
