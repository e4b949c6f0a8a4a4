"""The server's OpenAPI 3.1 document, made for the models in service."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..runtime.contract import FITS
from .classify import MAX_TOP_K

if TYPE_CHECKING:
    from ..runtime.contract import Contract
    from .models import Registry
    from .settings import Settings

Schema = dict[str, Any]


def document(registry: Registry, settings: Settings, version: str, *, with_key: bool) -> Schema:
    """Return the document; `with_key`: whether requests need an API key."""
    names, contracts = registry.names, [model.contract for model in registry.models]
    versions = sorted({model.version for model in registry.models})
    model = _parameter("path", "model", {"type": "string", "enum": names})
    pinned = _parameter("path", "version", {"type": "string", "enum": versions})
    question = [
        _parameter("query", "model", {"type": "string", "enum": names}),
        _parameter("query", "top_k", {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 3}),
        _parameter("query", "fit", {"type": "string", "enum": list(FITS)}),
    ]
    length = _parameter("header", "Inference-Header-Content-Length", {"type": "integer", "minimum": 0})
    binary: Schema = {"type": "string", "format": "binary"}
    infer_body = {"application/json": {"schema": _ref("InferRequest")}, "application/octet-stream": {"schema": binary}}
    upload = {
        "multipart/form-data": {"schema": {"type": "object", "additionalProperties": binary, "minProperties": 1}},
        "application/octet-stream": {"schema": binary},
        "image/*": {"schema": binary},
    }
    paths: Schema = {
        "/": {"get": _operation("What is served", _object())},
        "/v2": {"get": _operation("Server metadata", _ref("Server"))},
        "/v2/health/live": {"get": {**_operation("Whether the server runs", _object()), "security": []}},
        "/v2/health/ready": {
            "get": {**_operation("Whether it answers requests", _object(), _codes(503, "Ready")), "security": []}
        },
        "/v2/repository/index": {"post": _operation("Every model's name", {"type": "array", "items": _object()})},
        "/classify": {
            "post": {
                **_operation("Classify uploaded pictures", _ref("Predictions"), _codes(404, 413, 415, 429, 500, 504)),
                "parameters": question,
                "requestBody": {"required": True, "content": upload},
            }
        },
        "/metrics": {"get": _operation("Metrics for Prometheus", {"type": "string"}, kind="text/plain")},
        "/openapi.json": {"get": _operation("This document", _object())},
    }
    paths["/classify"]["post"]["responses"]["400"] = _response(
        "No picture could be read", {"anyOf": [_ref("Predictions"), _ref("Error")]}
    )
    for prefix, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, pinned]),
    ):
        gone = _codes(404)
        paths[prefix] = {"get": _operation("Model metadata", _ref("Model"), gone), "parameters": parameters}
        ready = _operation("Whether the model answers", _object(), {**gone, **_codes(503, "Ready")})
        paths[f"{prefix}/ready"] = {"get": ready, "parameters": parameters}
        infer = _operation("Run the model", _ref("InferResponse"), _codes(400, 404, 413, 415, 429, 500, 504))
        infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": binary}
        infer |= {"parameters": [length], "requestBody": {"required": True, "content": infer_body}}
        paths[f"{prefix}/infer"] = {"post": infer, "parameters": parameters}
    found: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "edgecifar",
            "version": version,
            "description": "The Open Inference Protocol, version 2, with binary tensors, and pictures by upload.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(contracts, settings.max_images)},
    }
    if with_key:
        if settings.open_metrics:
            paths["/metrics"]["get"]["security"] = []
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
        for path in paths.values():
            for operation in (path.get("get"), path.get("post")):
                if operation and "security" not in operation:
                    operation["responses"] |= _codes(401)
    return found


def _input(contract: Contract, max_images: int) -> Schema:
    """Return the schema of the input tensor of a model of `contract`."""
    pixel: Schema = {"type": "integer", "minimum": 0, "maximum": 255}
    count: Schema = {"type": "integer", "minimum": 0, "maximum": max_images}
    nested = pixel
    for size in reversed(contract.picture_shape):
        nested = {"type": "array", "items": nested, "minItems": size, "maxItems": size}
    sizes = [count, *({"const": size} for size in contract.picture_shape)]
    return _object(
        name={"const": contract.input_name},
        datatype={"const": "UINT8"},
        shape={"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)},
        data={
            "description": "Flat or nested, row-major.",
            "anyOf": [{"type": "array", "items": pixel}, {"type": "array", "items": nested, "maxItems": max_images}],
        },
    )


def _schemas(contracts: list[Contract], max_images: int) -> Schema:
    text: Schema = {"type": "string"}
    parameters: Schema = {"type": "object"}
    tensor = _object(name=text, datatype=text, shape={"type": "array", "items": {"type": "integer"}})
    inputs = [_input(contract, max_images) for contract in contracts]
    inputs = [schema for index, schema in enumerate(inputs) if schema not in inputs[:index]]
    given = inputs[0] if len(inputs) == 1 else {"anyOf": inputs}
    flag: Schema = {"type": "boolean"}
    wanted = _object(name={"enum": _united(contract.output_names for contract in contracts)})
    wanted["properties"]["parameters"] = {
        "type": "object",
        "properties": {"binary_data": flag, "classification": {"type": "integer", "minimum": 0}},
    }
    request = _object(inputs={"type": "array", "items": given, "minItems": 1, "maxItems": 1})
    request["properties"] |= {
        "id": text,
        "parameters": {
            "type": "object",
            "properties": {"binary_data_output": flag, "timeout": {"type": "integer", "minimum": 0}},
        },
        "outputs": {"type": "array", "items": wanted, "uniqueItems": True},
    }
    output = _object(**tensor["properties"])
    output["properties"] |= {"parameters": parameters, "data": {"type": "array"}}
    answer = _object(model_name=text, model_version=text, outputs={"type": "array", "items": output})
    answer["properties"]["id"] = text
    picture = _object(source=text)
    picture["properties"] |= {
        "error": text,
        "label": {"enum": _united(contract.labels for contract in contracts)},
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
        "top": {"type": "array", "items": _object(label=text, probability={"type": "number"})},
    }
    tensors: Schema = {"type": "array", "items": tensor}
    strings: Schema = {"type": "array", "items": text}
    return {
        "Error": _object(error=text),
        "Ready": _object(ready=flag),
        "Server": _object(name=text, version=text, extensions=strings),
        "Model": _object(name=text, versions=strings, platform=text, inputs=tensors, outputs=tensors),
        "InferRequest": request,
        "InferResponse": answer,
        "Predictions": _object(bundle=text, variant=text, predictions={"type": "array", "items": picture}),
    }


def _united(lists: Iterable[Iterable[str]]) -> list[str]:
    """Return all that is in one of `lists`, once each."""
    return list(dict.fromkeys(chain.from_iterable(lists)))


def _object(**properties: Schema) -> Schema:
    """Return the schema of an object that has all of `properties`, and may have others."""
    found: Schema = {"type": "object"}
    return found | ({"properties": dict(properties), "required": list(properties)} if properties else {})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(place: str, name: str, schema: Schema) -> Schema:
    return {"in": place, "name": name, "required": place == "path", "schema": schema}


def _response(text: str, schema: Schema, kind: str = "application/json") -> Schema:
    return {"description": text, "content": {kind: {"schema": schema}}}


def _codes(*codes: int | str) -> Schema:
    """Return the responses of statuses; a name among them is the schema of their bodies."""
    name = next((code for code in codes if isinstance(code, str)), "Error")
    return {str(code): _response(f"Status {code}", _ref(name)) for code in codes if isinstance(code, int)}


def _operation(text: str, schema: Schema, others: Schema | None = None, kind: str = "application/json") -> Schema:
    return {"summary": text, "responses": {"200": _response("Done", schema, kind), **(others or {})}}
