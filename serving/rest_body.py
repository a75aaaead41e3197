"""The body of a REST inference request: JSON, or JSON followed by raw tensors (the protocol's binary extension).

Knows no web framework. Raw tensors stay bytes: they are never turned into lists of numbers.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mvfoul.errors import RequestError
from serving.protocol import Tensor

_MAX_NODES = 1_000_000
"""JSON lists and objects in one request, some 60 bytes of memory each. Five nested views of 50 frames have 170,000."""

_MAX_COMMAS = 13_000_000
"""Of all kinds. Five views of 16x3x224x224 as numbers have 12,000,000; while they are parsed nothing else runs."""

JSON_LENGTH_HEADER = "inference-header-content-length"


@dataclass(frozen=True)
class RestRequest:
    """One parsed inference request."""

    request_id: str
    parameters: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    outputs: tuple[tuple[str, Mapping[str, Any]], ...]
    """Requested outputs with their parameters; empty asks for all."""


def parse_body(body: bytes, json_length: str | None) -> RestRequest:
    """Parse the body of an inference request.

    Args:
        body: All of it.
        json_length: The header `Inference-Header-Content-Length`; None: the body is JSON only.

    Raises:
        RequestError: It is not an inference request.
    """
    length = _json_length(json_length, len(body))
    document = _object(_load(body[:length]), "the body")
    raw = _RawTensors(body, length)
    tensors = tuple(_tensor(item, raw) for item in _list(document, "inputs"))
    raw.check_all_used()
    return RestRequest(
        request_id=_text(document.get("id", ""), "id"),
        parameters=_object(document.get("parameters") or {}, "parameters"),
        tensors=tensors,
        outputs=tuple(_output(item) for item in (_list(document, "outputs") if "outputs" in document else ())),
    )


class _RawTensors:
    """Hands out the bytes after the JSON, in the order of the inputs."""

    def __init__(self, body: bytes, offset: int) -> None:
        self._body = body
        self._offset = offset

    def take(self, name: str, size: Any) -> bytes:
        left = len(self._body) - self._offset
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= left:
            raise RequestError(
                f"input {name} has binary_data_size {reprlib.repr(size)}; {left} bytes are left after the JSON."
            )
        self._offset += size
        return self._body[self._offset - size : self._offset]

    def check_all_used(self) -> None:
        if left := len(self._body) - self._offset:
            raise RequestError(f"{left} bytes after the JSON belong to no input; give each a binary_data_size.")


def _json_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not header.isascii() or not header.isdigit() or int(header) > size:
        raise RequestError(f"Inference-Header-Content-Length is {reprlib.repr(header)}; the body has {size} bytes.")
    return int(header)


def _load(text: bytes) -> Any:
    if (nodes := text.count(b"[") + text.count(b"{")) > _MAX_NODES:
        raise RequestError(
            f"the JSON has {nodes} lists and objects, more than {_MAX_NODES}; send raw tensors, or gRPC."
        )
    if (commas := text.count(b",")) > _MAX_COMMAS:
        raise RequestError(f"the JSON has {commas} commas, more than {_MAX_COMMAS}; send raw tensors, or gRPC.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f'the body is not JSON ({error}). Send {{"inputs": [...]}}; raw tensors after it need the header '
            "Inference-Header-Content-Length."
        ) from error


def _tensor(item: Any, raw: _RawTensors) -> Tensor:
    fields = _object(item, "an input")
    name = _text(fields.get("name"), "name of an input")
    shape = fields.get("shape")
    if not isinstance(shape, list) or any(not isinstance(n, int) or isinstance(n, bool) for n in shape):
        raise RequestError(f"input {name} has shape {reprlib.repr(shape)}; it must be a list of integers.")
    parameters = _object(fields.get("parameters") or {}, f"parameters of input {name}")
    if ("data" in fields) == ("binary_data_size" in parameters):
        raise RequestError(f"input {name} must have either data, or the parameter binary_data_size and raw bytes.")
    if "data" in fields:
        data: bytes | list[Any] = _list(fields, "data")
    else:
        data = raw.take(name, parameters["binary_data_size"])
    return Tensor(name, _text(fields.get("datatype"), f"datatype of input {name}"), tuple(shape), data)


def _output(item: Any) -> tuple[str, Mapping[str, Any]]:
    fields = _object(item, "an output")
    name = _text(fields.get("name"), "name of an output")
    return name, _object(fields.get("parameters") or {}, f"parameters of output {name}")


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{place} is a {type(value).__name__}; it must be a JSON object.")
    return value


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise RequestError(
            f'"{key}" is {"missing" if value is None else type(value).__name__}; it must be a JSON list.'
        )
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{place} is {reprlib.repr(value)}; it must be a string.")
    return value
