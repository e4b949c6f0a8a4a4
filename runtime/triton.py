"""A bundle laid out as Triton Inference Server reads it: a model repository with a model for each ONNX variant.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import VariantError
from .files import new_folder

if TYPE_CHECKING:
    from .bundle import Bundle
    from .contract import Contract

LABELS_FILE = "labels.txt"
"""The file of the labels, one a line, which Triton's classification extension names classes by."""

MAX_BATCH = 64
"""Images that Triton runs at once: enough for full throughput."""


def write_repository(bundle: Bundle, folder: Path, *, name: str, replace: bool = False) -> list[str]:
    """Make `folder` a model repository of all ONNX variants of `bundle`, whose digests are checked.

    Args:
        bundle: what is laid out.
        folder: the repository; it appears whole or not at all.
        name: what the models' names begin with; a hyphen and the variant's name follow.
        replace: whether `folder` may be there already.

    Returns:
        The models' names.

    Raises:
        VariantError: the bundle has no ONNX variant.
        BundleError: a model is not what was exported.
        OutputError: the folder exists or cannot be written.
    """
    variants = [variant for variant in bundle.manifest.variants if variant.is_onnx]
    if not variants:
        raise VariantError(f"{bundle.folder} has no ONNX variant, and Triton is given no other: export one.")
    names: list[str] = []
    with new_folder(folder, replace=replace) as staged:
        for variant in variants:
            names.append(f"{name}-{variant.name}")
            version = staged / names[-1] / "1"
            version.mkdir(parents=True)
            (version / "model.onnx").write_bytes(bundle.read(variant))
            (version.parent / LABELS_FILE).write_text("\n".join(bundle.contract.labels) + "\n", encoding="utf-8")
            (version.parent / "config.pbtxt").write_text(configuration(names[-1], bundle.contract), encoding="utf-8")
    return names


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
    name: "one picture"
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
