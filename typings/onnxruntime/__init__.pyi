"""The part of onnxruntime that the packages name; it has no types of its own. All else is Any."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

class NodeArg:
    name: str
    type: str
    shape: list[int | str | None]

class ModelMetadata:
    custom_metadata_map: dict[str, str]

class NodeInformation:
    name: str

class AssignedPart:
    ep_name: str
    def get_nodes(self) -> list[NodeInformation]: ...

class InferenceSession:
    def __init__(
        self,
        path_or_bytes: bytes | str,
        sess_options: Any = ...,
        providers: Sequence[str | tuple[str, Mapping[str, str]]] | None = ...,
        **options: Any,
    ) -> None: ...
    def get_inputs(self) -> list[NodeArg]: ...
    def get_outputs(self) -> list[NodeArg]: ...
    def get_modelmeta(self) -> ModelMetadata: ...
    def get_providers(self) -> list[str]: ...
    def get_provider_graph_assignment_info(self) -> list[AssignedPart]: ...
    def io_binding(self) -> Any: ...
    def run(self, output_names: Sequence[str], input_feed: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...
    def run_with_iobinding(self, iobinding: Any) -> None: ...

def __getattr__(name: str) -> Any: ...
