"""A bundle laid out as Triton Inference Server reads it: a model repository with a model for each ONNX variant.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import OutputError, VariantError
from .files import new_folder, refuse_existing, remove_folder

if TYPE_CHECKING:
    from .bundle import Bundle
    from .contract import Contract

LABELS_FILE = "labels.txt"
"""The file of the labels, one a line, which Triton's classification extension names classes by."""

CONFIGURATION, MODEL = "config.pbtxt", "1/model.onnx"
"""The other files of a model's folder."""

WARM_UP = 'name: "one picture"'
"""Every configuration that is written here holds this, by which it is known."""

MAX_BATCH = 64
"""Images that Triton runs at once: enough for full throughput."""


def write_repository(bundle: Bundle, folder: Path, *, name: str, replace: bool = False) -> tuple[list[str], list[str]]:
    """Put all ONNX variants of `bundle`, whose digests are checked, into the model repository `folder`.

    Args:
        bundle: what is laid out.
        folder: the repository; a new one, or each model's folder in one that is there, appears whole or not at all.
        name: what the models' names begin with; a hyphen and the variant's name follow.
        replace: whether `folder` may be there already. Models of the same names are replaced; those that were laid out
            from a bundle of the same name, of variants that this one does not have, are removed; all else in it stays.

    Returns:
        The models' names, and those that were removed.

    Raises:
        VariantError: the bundle has no ONNX variant.
        BundleError: a model is not what was exported.
        OutputError: the folder exists, or one in it by a model's name that is none; or it cannot be written.
    """
    variants = [variant for variant in bundle.manifest.variants if variant.is_onnx]
    if not variants:
        raise VariantError(f"{bundle.folder} has no ONNX variant, and Triton is given no other: export one.")
    refuse_existing(folder, replace)
    names: list[str] = []
    with ExitStack() as folders:
        repository = folder if folder.is_dir() else folders.enter_context(new_folder(folder))
        for variant in variants:
            names.append(f"{name}-{variant.name}")
            model = folders.enter_context(new_folder(repository / names[-1], replace, _refuse_other))
            (model / MODEL).parent.mkdir()
            (model / MODEL).write_bytes(bundle.read(variant))
            (model / LABELS_FILE).write_text("\n".join(bundle.contract.labels) + "\n", encoding="utf-8")
            (model / CONFIGURATION).write_text(configuration(names[-1], bundle.contract), encoding="utf-8")
    old = [path for path in sorted(folder.iterdir()) if path.name not in names and _is_of(path, name)]
    for path in old:
        remove_folder(path)
    return names, [path.name for path in old]


def _refuse_other(folder: Path) -> None:
    """Raise an OutputError unless a folder holds nothing but what is written here."""
    for path in folder.rglob("*"):
        if path.relative_to(folder).as_posix() not in ("1", MODEL, LABELS_FILE, CONFIGURATION):
            raise OutputError(f"{path} is not of a model that was laid out from a bundle: choose another folder.")


def _is_of(folder: Path, bundle_name: str) -> bool:
    """Return whether a folder is a model that was laid out from a bundle of this name.

    What follows the bundle's name is a variant's, which has no hyphen: `birds-2-edge` is of `birds-2`, not of `birds`.
    """
    if not re.fullmatch(f"{re.escape(bundle_name)}-[^-]+", folder.name) or folder.is_symlink():
        return False
    try:
        _refuse_other(folder)
        return WARM_UP in (folder / CONFIGURATION).read_text(encoding="utf-8")
    except (OutputError, OSError, UnicodeDecodeError):
        return False


def configuration(name: str, contract: Contract) -> str:
    """Return config.pbtxt, a `ModelConfig` of Triton's protobuf in its text format, for a model of `contract`."""
    picture = f"data_type: TYPE_UINT8\n    dims: {list(contract.picture_shape)}"
    outputs: list[str] = []
    for output in contract.output_names:
        if output == contract.familiarity_name:  # one number a picture: Triton wants a dimension, the graph has none
            shape = "dims: [1]\n    reshape { shape: [] }"
        else:
            shape = f'dims: [{contract.classes}]\n    label_filename: "{LABELS_FILE}"'
        outputs.append(f"  {{\n    name: {json.dumps(output)}\n    data_type: TYPE_FP32\n    {shape}\n  }}")
    listed = ",\n".join(outputs)
    warm = picture.replace("\n", "\n    ")
    return f"""\
name: {json.dumps(name)}
platform: "onnxruntime_onnx"
max_batch_size: {MAX_BATCH}
input [
  {{
    name: {json.dumps(contract.input_name)}
    {picture}
  }}
]
output [
{listed}
]
dynamic_batching {{}}
model_warmup [
  {{
    {WARM_UP}
    batch_size: 1
    inputs {{
      key: {json.dumps(contract.input_name)}
      value {{
        {warm}
        zero_data: true
      }}
    }}
  }}
]
"""
