"""The TorchScript format: deprecated by torch in favour of `.pt2`, but asked for by programs that embed libtorch."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import torch
from torch import nn

from ...runtime.contract import Contract

CONTRACT = "contract.json"
"""The name of the extra file, inside a TorchScript or `.pt2` archive, that holds the contract."""


def write(model: nn.Module, path: Path, contract: Contract) -> None:
    """Write `model`, scripted and frozen; the batch dimension stays free, and the contract is an extra file."""
    buffer = io.BytesIO()  # torch's own file writer hides why it failed, and puts the file's name into the file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated as a whole: known, see above
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.freeze(torch.jit.script(model))
        torch.jit.save(script, buffer, _extra_files={CONTRACT: json.dumps(contract.as_json())})
    path.write_bytes(buffer.getvalue())


def read(path: Path) -> tuple[nn.Module, Contract | None]:
    """Load a TorchScript file, and its contract. Its code runs: only files from a trusted source may be loaded.

    The contract is None in files of earlier versions, which had none.

    Raises:
        ValueError: the contract is not one that this version knows.
        Exception: torch's reader raises whatever a damaged file leads it to.
    """
    extra = {CONTRACT: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    return module, parse_contract(extra[CONTRACT])


def parse_contract(text: str | bytes) -> Contract | None:
    """Return the contract of an archive's extra file; None where the file is missing.

    Raises:
        ValueError: it is not JSON, or not a contract that this version knows.
    """
    return Contract.parse(json.loads(text)) if text else None
