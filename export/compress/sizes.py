"""How large an int8 file will be, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...runtime.contract import Contract
from ..familiarity import constants

OVERHEAD = 18_000
"""Nodes have at most so many bytes; 16,900 were measured, 2,400 less without a temperature for each picture."""

CHANNEL_BYTES = 16
"""A bias, the scales and the zero points of a layer have so many bytes an output, measured on files."""


def expected_bytes(model: nn.Module, contract: Contract, provenance: Mapping[str, Any]) -> int:
    """Return how many bytes the int8 file of a graph will have, at most; a few thousand more than it will.

    Args:
        model: a `Deployed` or a `DeployedResidual`; its weights are not looked at.
        contract: what the file says that it takes and gives.
        provenance: JSON values that go into the file's metadata; of many classes they are long.
    """
    *layers, last = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    int8 = sum(layer.weight.numel() + CHANNEL_BYTES * len(layer.weight) for layer in layers)
    in_float = sum(parameter.numel() for parameter in last.parameters()) + constants(last.weight.shape[1])
    said = len(json.dumps(contract.as_json())) + len(json.dumps(dict(provenance)))
    return int8 + 4 * in_float + said + OVERHEAD
