"""Requests and answers of the Open Inference Protocol, version 2, with its binary tensor and classification extensions.

The protocol: https://github.com/kserve/open-inference-protocol. Binary tensors: the bytes of a tensor follow the JSON,
little-endian and row-major, and the header `Inference-Header-Content-Length` says how long the JSON is.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from .errors import RequestError

if TYPE_CHECKING:
    from ..runtime.contract import Contract

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository(index)")
"""Extensions that the server's metadata names."""

BINARY_HEADER = b"inference-header-content-length"

JSON, OCTETS = b"application/json", b"application/octet-stream"
"""Content types of an answer without and with binary tensors."""

JSON_BYTES_AN_ELEMENT = 32
"""Bytes of JSON that an element of a tensor may take on average, white space included; what is more is not read."""


REMEMBERED, REMEMBERED_BYTES = 256, 1024
"""How many requests' JSON a model remembers, and how long it may be."""


@dataclass(frozen=True)
class Output:
    """An output that is asked for.

    Attributes:
        name: one of the contract's.
        binary: whether it is sent as bytes after the JSON.
        classes: how many of the greatest values are named by their labels instead of sending all; 0: all are sent.
    """

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request that was read and holds to the contract.

    Attributes:
        images: uint8 [N, size, size, 3].
        outputs: in the order of the answer.
        id: given back as it came; None where there was none.
        timeout: seconds that the client allows for the answer; None where it says nothing.
    """

    images: np.ndarray
    outputs: tuple[Output, ...]
    id: str | None
    timeout: float | None


def max_body(contract: Contract, max_images: int) -> int:
    """Return how many bytes a request of `max_images` may have."""
    return 65536 + max_images * math.prod(contract.picture_shape) * JSON_BYTES_AN_ELEMENT


def model_metadata(name: str, version: str, contract: Contract) -> dict[str, Any]:
    """Return the metadata of a model; the labels, which the protocol has no place for, are among its parameters."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": contract.input_name, "datatype": "UINT8", "shape": [-1, *contract.picture_shape]}],
        "outputs": [
            {"name": output, "datatype": "FP32", "shape": [-1, *shape]}
            for output, shape in contract.output_shapes.items()
        ],
        "parameters": {"labels": list(contract.labels), "fit": contract.fit},
    }


def parse_infer(body: bytes, json_length: bytes | None, contract: Contract, max_images: int) -> InferRequest:
    """Read a request.

    Args:
        body: of the request.
        json_length: the value of its header `Inference-Header-Content-Length`, if it has one.
        contract: of the model.
        max_images: how many images a request may have.

    Raises:
        RequestError: 400, it is not one of the protocol or does not hold to the contract; the message says where.
    """
    head, tail = _split(body, json_length)
    try:
        values = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise _bad(f"the body is not JSON ({error})") from None
    if type(values) is not dict:
        raise _bad("the body is not a JSON object")
    given = values.get("id")
    if given is not None and type(given) is not str:
        raise _bad("'id' is not a string")
    parameters = _parameters(values, "the request")
    timeout = parameters.get("timeout")
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise _bad("the parameter 'timeout' is not a number of microseconds, an integer")
    images = _images(values.get("inputs"), tail, contract, max_images, plain=not (b"true" in head or b"false" in head))
    outputs = _outputs(values.get("outputs"), parameters.get("binary_data_output", False), contract)
    return InferRequest(images, outputs, given, timeout / 1e6 if timeout else None)


class Reader:
    """Reads requests as `parse_infer` does; it remembers the JSON of binary ones, as a client's differ in pixels."""

    def __init__(self, contract: Contract, max_images: int) -> None:
        """Read requests of a model of `contract`, of at most `max_images` images."""
        self._contract, self._max_images = contract, max_images
        self._known: dict[bytes, InferRequest] = {}

    def read(self, body: bytes, json_length: bytes | None) -> InferRequest:
        """Read a request; as `parse_infer`."""
        if json_length is None:
            return parse_infer(body, None, self._contract, self._max_images)
        head, tail = _split(body, json_length)
        known = self._known.get(head)
        if known is None or known.images.nbytes != len(tail):
            request = parse_infer(body, json_length, self._contract, self._max_images)
            if len(head) <= REMEMBERED_BYTES and len(tail):
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                shape = np.broadcast_to(np.uint8(0), request.images.shape)  # holds no pixels
                self._known[head] = replace(request, images=shape)
            return request
        images = np.frombuffer(tail, np.uint8).reshape(known.images.shape)
        return InferRequest(images, known.outputs, known.id, known.timeout)


def build_infer(
    request: InferRequest, rows: list[np.ndarray], model: tuple[str, str], contract: Contract
) -> tuple[list[bytes], int | None]:
    """Return the parts of the answer's body, and the length of its JSON where binary tensors follow it.

    Args:
        request: what is answered.
        rows: all outputs of the model, in the contract's order.
        model: its name and its version.
        contract: of the model.
    """
    outputs, parts = [], []
    for output in request.outputs:
        array = rows[contract.output_names.index(output.name)]
        entry: dict[str, Any] = {"name": output.name, "datatype": "FP32"}
        if output.classes:
            texts, shape = _top_classes(array, output.classes, contract.labels)
            entry |= {"datatype": "BYTES", "shape": shape}
            data = b"".join(struct.pack("<I", len(text)) + text for text in texts) if output.binary else None
            listed: Any = None if output.binary else [text.decode() for text in texts]
        else:
            entry["shape"] = list(array.shape)
            data = array.astype("<f4", copy=False).tobytes() if output.binary else None
            listed = None if output.binary else np.ascontiguousarray(array).ravel()
        if data is None:
            entry["data"] = listed
        else:
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        outputs.append(entry)
    answer: dict[str, Any] = {"model_name": model[0], "model_version": model[1]}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = outputs
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return [head, *parts], len(head) if parts else None


def _bad(reason: str) -> RequestError:
    return RequestError(400, f"This is not a request that the model takes: {reason}.")


def _split(body: bytes, json_length: bytes | None) -> tuple[bytes, memoryview]:
    """Return the JSON and the binary tensors of a body."""
    if json_length is None:
        return body, memoryview(b"")
    if not json_length.isdigit() or len(json_length) > 10 or int(json_length) > len(body):
        raise _bad("Inference-Header-Content-Length is not the length of the JSON at the beginning of the body")
    length = int(json_length)
    return body[:length], memoryview(body)[length:]


def _parameters(values: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = values.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise _bad(f"'parameters' of {where} is not an object")
    if any(name.startswith("shared_memory") for name in parameters):
        raise _bad("shared memory is not supported: send the data")
    return parameters


def _flag(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise _bad(f"the parameter {name!r} is not true or false")
    return value


def _images(inputs: Any, tail: memoryview, contract: Contract, max_images: int, plain: bool) -> np.ndarray:
    """Return the only input, uint8 [N, size, size, 3]; `plain`: no value of the JSON is true or false."""
    name, shape = contract.input_name, contract.picture_shape
    if type(inputs) is not list or len(inputs) != 1 or type(inputs[0]) is not dict or inputs[0].get("name") != name:
        raise _bad(f"'inputs' is not a list of one object whose 'name' is {name!r}")
    entry = inputs[0]
    if entry.get("datatype") != "UINT8":
        raise _bad(f"the 'datatype' of {name} is not 'UINT8'")
    given = entry.get("shape")
    if type(given) is not list or any(type(size) is not int for size in given) or tuple(given[1:]) != shape:
        raise _bad(f"the 'shape' of {name} is not [N, {', '.join(map(str, shape))}]")
    count = given[0]
    if not 0 <= count <= max_images:
        raise _bad(f"{name} has {count} images: send 0 to {max_images} at once")
    elements = count * math.prod(shape)
    size = _parameters(entry, name).get("binary_data_size")
    if size is None:
        if len(tail):
            raise _bad(f"{len(tail)} bytes follow the JSON, and no 'binary_data_size' says what they are")
        data = entry.get("data")
        if type(data) is not list:
            raise _bad(f"'data' of {name} is not a list")
        flat = _flatten(data, given, name)
        if len(flat) != elements:
            raise _bad(f"'data' of {name} has {len(flat)} values, its 'shape' has {elements}")
        try:
            pixels = bytes(flat)  # takes integers from 0 to 255 alone, and quickly
        except (TypeError, ValueError):
            raise _bad(f"'data' of {name} holds what is not an integer from 0 to 255") from None
        if not plain and bool in set(map(type, flat)):
            raise _bad(f"'data' of {name} holds true or false, not integers from 0 to 255")
        return np.frombuffer(pixels, np.uint8).reshape(given)
    if entry.get("data") is not None:
        raise _bad(f"{name} has both 'data' and 'binary_data_size'")
    if type(size) is not int or size != elements or size != len(tail):
        raise _bad(
            f"'binary_data_size' of {name} must be {elements}, as its 'shape' says, and so many bytes must follow the "
            f"JSON: {len(tail)} do"
        )
    return np.frombuffer(tail, np.uint8).reshape(given)


def _flatten(data: list[Any], shape: list[int], name: str) -> list[Any]:
    """Return the values of `data`, which is flat already or nested as `shape` says."""
    if not data or type(data[0]) is not list:
        return data
    if len(data) != shape[0]:
        raise _bad(f"'data' of {name} is not nested as its 'shape' says")
    for size in shape[1:]:
        if any(type(row) is not list or len(row) != size for row in data):
            raise _bad(f"'data' of {name} is not nested as its 'shape' says")
        data = list(chain.from_iterable(data))
    return data


def _outputs(outputs: Any, binary: Any, contract: Contract) -> tuple[Output, ...]:
    """Return what is asked for, by default all outputs; `binary` holds where an output says nothing itself."""
    default = _flag(binary, "binary_data_output")
    if outputs is None or outputs == []:
        return tuple(Output(name, default) for name in contract.output_names)
    if type(outputs) is not list or any(type(entry) is not dict for entry in outputs):
        raise _bad("'outputs' is not a list of objects")
    found = []
    for entry in outputs:
        name = entry.get("name")
        if type(name) is not str or name not in contract.output_names or name in {output.name for output in found}:
            raise _bad(f"'outputs' names, once each, of {', '.join(contract.output_names)}")
        parameters = _parameters(entry, name)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0 or (classes and name == contract.familiarity_name):
            raise _bad(f"the parameter 'classification' of {name} is not a number of classes")
        found.append(
            Output(name, _flag(parameters.get("binary_data", default), "binary_data"), min(classes, contract.classes))
        )
    return tuple(found)


def _top_classes(array: np.ndarray, count: int, labels: tuple[str, ...]) -> tuple[list[bytes], list[int]]:
    """Return the greatest values of each row of `array`, float32 [N, classes], `VALUE:INDEX:LABEL`, and the shape."""
    order = np.argsort(-array, axis=1, kind="stable")[:, :count]
    texts = [
        f"{float(array[row, index]):f}:{index}:{labels[index]}".encode()
        for row, indices in enumerate(order.tolist())
        for index in indices
    ]
    return texts, [len(array), count]
