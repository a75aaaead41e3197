"""The tensors of a request: what the model takes and gives, and every check before a byte is used.

    CLIPS   BYTES [V]            encoded video files; in REST's JSON as base64 strings
    VIEWS   UINT8 [V,3,T,H,W]    decoded views, RGB

A request has one of the two. Knows neither gRPC nor REST: both bring their tensors as `Tensor`.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS, VIEWS
from mvfoul.clip import ClipSpec
from mvfoul.errors import RequestError
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES
from serving.parameters import REQUEST_PARAMETERS

CLIPS: Final = "CLIPS"
DECISION: Final = "DECISION"
OUTPUTS: Final = (ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS, DECISION)

_DATATYPES: Final[Mapping[str, str]] = {CLIPS: "BYTES", VIEWS: "UINT8"}
_PARAMETERS: Final = ("binary_data_output", "binary_data_size", "binary_data")
_MAX_ID_CHARS = 256


@dataclass(frozen=True)
class Tensor:
    """One input of a request as it came in."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Sequence[Any]
    """bytes: the raw buffer (for BYTES each element after its length, 4 bytes, little endian). Otherwise the elements,
    flat or nested; of BYTES each is bytes (gRPC) or base64 text (JSON)."""


def input_metadata(spec: ClipSpec) -> list[dict[str, Any]]:
    """Return name, datatype and shape of the inputs; -1 is V, the views of the action."""
    return [
        {"name": CLIPS, "datatype": "BYTES", "shape": [-1]},
        {"name": VIEWS, "datatype": "UINT8", "shape": [-1, *spec.view_shape]},
    ]


def output_metadata() -> list[dict[str, Any]]:
    """Return name, datatype and shape of the outputs."""
    return [
        {"name": ACTION_PROBABILITIES, "datatype": "FP32", "shape": [len(ACTION_CLASSES)]},
        {"name": OFFENCE_SEVERITY_PROBABILITIES, "datatype": "FP32", "shape": [len(OFFENCE_SEVERITIES)]},
        {"name": VIEW_WEIGHTS, "datatype": "FP32", "shape": [-1]},
        {"name": DECISION, "datatype": "BYTES", "shape": [1]},
    ]


def check_envelope(
    request_id: str, parameters: Sequence[str], tensor_parameters: Sequence[str], outputs: Sequence[str]
) -> None:
    """Check what surrounds the tensors.

    Args:
        request_id: As the client or the server chose it.
        parameters: Names of the request's own parameters.
        tensor_parameters: Names of the parameters of its inputs and of its outputs.
        outputs: Names of the outputs that are asked for.

    Raises:
        RequestError: Something is asked for that this server does not do.
    """
    if len(request_id) > _MAX_ID_CHARS:
        raise RequestError(f"the request id has {len(request_id)} characters; use at most {_MAX_ID_CHARS}.")
    if unknown := sorted(
        (set(parameters) - {*_PARAMETERS, *REQUEST_PARAMETERS}) | (set(tensor_parameters) - set(_PARAMETERS))
    ):
        raise RequestError(
            f"the request has unknown parameters {unknown}; leave them out. Of the request itself this server knows "
            f"{', '.join(REQUEST_PARAMETERS)}."
        )
    if unknown := sorted(set(outputs) - set(OUTPUTS)):
        raise RequestError(f"the request asks for unknown outputs {unknown}; this model gives {', '.join(OUTPUTS)}.")


def view_shape_of(tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Return the shape that a request's decoded views claim to have; None where it has none."""
    return next((tensor.shape[1:] for tensor in tensors if tensor.name == VIEWS), None)


def read_inputs(tensors: Sequence[Tensor], spec: ClipSpec, *, at_least: int = 1) -> list[bytes] | NDArray[np.uint8]:
    """Return the clips (a list of files) or the views (`[V, 3, T, H, W]`) of a request.

    Args:
        tensors: All inputs of the request.
        spec: Of the artifact that will answer.
        at_least: The fewest views; 0 in a session.

    Raises:
        RequestError: Not exactly one of the two inputs, or its datatype, shape or data is wrong.
    """
    names = [tensor.name for tensor in tensors]
    if unknown := [name for name in names if name not in _DATATYPES]:
        raise RequestError(f"the request has unknown inputs {unknown}; this model takes {CLIPS} or {VIEWS}.")
    if len(names) != 1:
        found = " and ".join(names) or "no input"
        raise RequestError(f"the request has {found}; send either {CLIPS} (encoded video) or {VIEWS} (decoded frames).")
    (tensor,) = tensors
    if tensor.datatype != _DATATYPES[tensor.name]:
        raise RequestError(f"{tensor.name} has datatype {tensor.datatype!r}; it must be {_DATATYPES[tensor.name]}.")
    _check_shape(tensor, spec, at_least)
    return _clips(tensor) if tensor.name == CLIPS else _views(tensor)


def _check_shape(tensor: Tensor, spec: ClipSpec, at_least: int) -> None:
    wanted: tuple[int, ...] = () if tensor.name == CLIPS else spec.view_shape
    if len(tensor.shape) != 1 + len(wanted) or tensor.shape[1:] != wanted:
        shown = ", ".join(["V", *map(str, wanted)])
        raise RequestError(
            f"{tensor.name} has shape {list(tensor.shape)}; it must be [{shown}], V the number of views."
        )
    if not at_least <= tensor.shape[0] <= spec.max_views:
        raise RequestError(f"{tensor.name} has {tensor.shape[0]} views; send from 1 to {spec.max_views}.")


def _clips(tensor: Tensor) -> list[bytes]:
    if isinstance(tensor.data, bytes):
        clips = _split_raw(tensor.data)
    else:
        clips = [_clip(v, element) for v, element in enumerate(tensor.data)]
    if len(clips) != tensor.shape[0]:
        raise RequestError(f"{CLIPS} has shape {list(tensor.shape)} but {len(clips)} elements; make both the same.")
    if empty := [v for v, clip in enumerate(clips) if not clip]:
        raise RequestError(f"{CLIPS} elements {empty} are empty; send the bytes of a video file in each.")
    return clips


def _split_raw(raw: bytes) -> list[bytes]:
    """Split the raw form of a BYTES tensor, in which each element follows its length."""
    clips: list[bytes] = []
    offset = 0
    while offset < len(raw):
        start = offset + 4
        # A header cut short announces nothing, so it counts as running past the end.
        size = struct.unpack_from("<I", raw, offset)[0] if start <= len(raw) else 4
        if start + size > len(raw):
            raise RequestError(
                f"{CLIPS}[{len(clips)}] announces {size} bytes, {max(0, len(raw) - start)} follow in the raw buffer;"
                " each element must follow its length (4 bytes, little endian)."
            )
        clips.append(raw[start : start + size])
        offset = start + size
    return clips


def _clip(v: int, element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    if not isinstance(element, str):
        raise RequestError(
            f"{CLIPS}[{v}] is a {type(element).__name__}; in JSON, data is a flat list of base64 strings."
        )
    try:
        return base64.b64decode(element, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{CLIPS}[{v}] is not base64 ({error}); encode the video file with base64.") from error


def _views(tensor: Tensor) -> NDArray[np.uint8]:
    expected = math.prod(tensor.shape)
    if isinstance(tensor.data, bytes):
        found = len(tensor.data)
        values = np.frombuffer(tensor.data, dtype=np.uint8)
    else:
        values = _numbers(tensor.data)
        found = values.size
    if found != expected:
        raise RequestError(
            f"{VIEWS} has {found} bytes of data; its shape {list(tensor.shape)} needs {expected}."
            " Send one byte per value."
        )
    return values.reshape(tensor.shape)


def _numbers(data: Sequence[Any]) -> NDArray[np.uint8]:
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"{VIEWS} data is not a list of numbers ({error}); send integers from 0 to 255.") from error
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255):
        raise RequestError(f"{VIEWS} data holds something else than integers from 0 to 255; send those.")
    return values.astype(np.uint8).ravel()
