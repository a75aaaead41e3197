"""Requests that no honest client sends, from a seed: the same seed gives the same request."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from tritonclient.grpc import service_pb2 as pb

NAMES = ("CLIPS", "VIEWS", "VIDEO", "", "CLIPS\0", "x" * 300, "DECISION")
DATATYPES = ("BYTES", "UINT8", "FP32", "INT64", "BOOL", "FP16", "", "bytes", "BYTES" * 50)
NUMBERS = (-(2**63), -1, 0, 1, 2, 5, 6, 1000, 2**31, 2**62)
TEXTS = (
    "",
    "a",
    "action-1",
    "x" * 129,
    "x" * 5000,
    "\0",
    "0,2",
    "-1",
    "0,0,0",
    "999",
    ",",
    "9" * 50,
    "ü\n\r\t",
    "../..",
)
PARAMETERS = ("action_id", "drop_views", "priority", "timeout", "sequence_id", "binary_data_size", "classification", "")
OUTPUTS = ("DECISION", "VIEW_WEIGHTS", "LOGITS", "")


class Cases:
    """Makes requests about one set of good clips and one shape of a view."""

    def __init__(self, clips: Sequence[bytes], view_shape: tuple[int, ...]) -> None:
        self._clips = clips
        self._view_shape = view_shape

    def clip(self, rng: random.Random) -> bytes:
        """Return a clip that may be broken anywhere."""
        data = bytearray(rng.choice(self._clips))
        for _ in range(rng.choice((0, 1, 1, 2))):
            rng.choice((_truncate, _flip_bits, _forge_number, _overwrite, _insert, _rename_box))(data, rng)
        return bytes(data) if rng.random() < 0.95 else rng.randbytes(rng.randrange(3000))

    def grpc(self, rng: random.Random) -> pb.ModelInferRequest:
        """Return a request of which most parts are wrong."""
        request = pb.ModelInferRequest(
            model_name=_mostly(rng, "mvfoul", "", "other", "x" * 300),
            model_version=_mostly(rng, "", "1", "0" * 12, "x" * 300),
            id=_mostly(rng, "r", "", "x" * 2000),
        )
        for _ in range(rng.choices((0, 1, 2, 9), (1, 12, 2, 1))[0]):
            name, datatype, shape, raw = self._tensor(rng)
            item = request.inputs.add(name=name, datatype=datatype, shape=shape)
            if rng.random() < 0.95:
                request.raw_input_contents.append(raw)
            if rng.random() < 0.1:
                _add_contents(item.contents, rng)
            if rng.random() < 0.1:
                _add_parameter(item.parameters, rng)
        for _ in range(rng.choices((0, 1, 3), (18, 1, 1))[0]):
            _add_parameter(request.parameters, rng)
        for _ in range(rng.choices((0, 1, 50), (18, 2, 1))[0]):
            request.outputs.add(name=rng.choice(OUTPUTS))
        return request

    def rest(self, rng: random.Random) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers of a request."""
        tensors = [self._tensor(rng) for _ in range(rng.choices((0, 1, 2), (1, 12, 2))[0])]
        inputs, tail = [], b""
        for name, datatype, shape, raw in tensors:
            item: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
            if rng.random() < 0.5:
                whole = raw[4:] if datatype == "BYTES" else raw
                item["data"] = _mostly(rng, [base64.b64encode(whole).decode()], _junk(rng, 3), list(raw[:50]))
            else:
                item["parameters"] = {"binary_data_size": _mostly(rng, len(raw), -1, 2**40, "7", None)}
                tail += raw
            inputs.append(item)
        document: dict[str, Any] = {"inputs": inputs, "id": _mostly(rng, "r", "", 5, "x" * 2000)}
        if rng.random() < 0.15:
            document["parameters"] = {rng.choice(PARAMETERS): _junk(rng, 1) for _ in range(2)}
        if rng.random() < 0.1:
            document["outputs"] = rng.choice(([{"name": rng.choice(OUTPUTS)}], _junk(rng, 2)))
        if rng.random() < 0.1:
            document[rng.choice(("inputs", "id", "parameters", "outputs"))] = _junk(rng, 3)
        head = json.dumps(document).encode()
        if rng.random() < 0.1:
            broken = bytearray(head)
            _flip_bits(broken, rng)
            head = bytes(broken)
        length = _mostly(rng, len(head), 0, len(head) + 7, -1, "x", 2**70)
        headers = {"inference-header-content-length": str(length)} if tail or rng.random() < 0.1 else {}
        return head + tail, headers

    def _tensor(self, rng: random.Random) -> tuple[str, str, list[int], bytes]:
        kind = rng.random()
        if kind < 0.5:  # as it should be, but for the clips
            clips = [self.clip(rng) for _ in range(rng.choices((1, 2, 5, 6, 40), (12, 3, 1, 1, 1))[0])]
            raw = b"".join(struct.pack("<I", len(clip)) + clip for clip in clips)
            if rng.random() < 0.15:
                raw = _lying(raw, rng)
            return "CLIPS", "BYTES", [len(clips)], raw
        if kind < 0.7:
            shape = [rng.choice((1, 1, 2, 6)), *self._view_shape]
            size = int(np.prod(shape)) + rng.choices((0, -1, 1), (2, 1, 1))[0]
            return "VIEWS", rng.choices(("UINT8", "FP32"), (4, 1))[0], shape, bytes(size)
        shape = [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 1, 5, 60)))]
        return rng.choice(NAMES), rng.choice(DATATYPES), shape, rng.randbytes(rng.randrange(200))


def _mostly(rng: random.Random, good: Any, *others: Any) -> Any:
    return good if rng.random() < 0.93 else rng.choice(others)


def _junk(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [_junk(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(TEXTS): _junk(rng, depth - 1) for _ in range(rng.randrange(4))}
    return (rng.choice(NUMBERS), rng.choice(TEXTS), None, rng.random() * 1e300, bool(rng.randrange(2)), 10**400)[kind]


def _add_parameter(parameters: Any, rng: random.Random) -> None:
    value = parameters[rng.choice(PARAMETERS)]
    match rng.randrange(5):
        case 0:
            value.int64_param = rng.choice(NUMBERS)
        case 1:
            value.string_param = rng.choice(TEXTS)
        case 2:
            value.bool_param = True
        case 3:
            value.double_param = rng.choice((0.0, 1e300, float("nan")))


def _add_contents(contents: Any, rng: random.Random) -> None:
    match rng.randrange(4):
        case 0:
            contents.bytes_contents.append(rng.randbytes(9))
        case 1:
            contents.uint_contents.extend((0, 255, 256, 2**32 - 1))
        case 2:
            contents.fp32_contents.extend((float("nan"), 1e30))
        case 3:
            contents.int64_contents.extend((-(2**63), 2**63 - 1))


def _lying(raw: bytes, rng: random.Random) -> bytes:
    lengths = (0, 1, 2**31 - 1, 2**32 - 1, len(raw))
    return struct.pack("<I", rng.choice(lengths)) + raw[4 : rng.randrange(4, len(raw) + 1)]


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(min(len(data), rng.choice((1, 3, 30)))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _forge_number(data: bytearray, rng: random.Random) -> None:
    if len(data) > 8:
        # Anywhere, but more often in the index at the end of the file.
        first = 0 if rng.random() < 0.3 else max(0, len(data) - 2500)
        place = rng.randrange(first, len(data) - 4)
        struct.pack_into(">I", data, place, rng.choice((0, 1, 0xFFFF, 100_000, 2**31 - 1, 2**31, 2**32 - 1)))


def _overwrite(data: bytearray, rng: random.Random) -> None:
    if data:
        place, size = rng.randrange(len(data)), rng.randrange(200)
        data[place : place + size] = rng.randbytes(size)


def _insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.randrange(50))


def _rename_box(data: bytearray, rng: random.Random) -> None:
    boxes = (b"stsz", b"stts", b"ctts", b"stsc", b"stco", b"stss", b"elst", b"trak", b"moov", b"mdat", b"avcC", b"avc1")
    if (place := data.find(rng.choice(boxes))) >= 0:
        data[place : place + 4] = rng.choice((*boxes, b"free", b"co64", b"stz2", b"trun", b"hvc1", b"mp4v"))


def mutated(message: bytes, rng: random.Random) -> bytes:
    """Return bytes that may be no protobuf any more."""
    data = bytearray(message)
    for _ in range(rng.choice((1, 2))):
        rng.choice((_truncate, _flip_bits, _overwrite, _insert))(data, rng)
    return bytes(data)


def many_frames(count: int, size: tuple[int, int], fps: int = 25) -> bytes:
    """A clip of `count` intra-coded grey pictures, small for what they cost: one packet, repeated."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "threads": "1", "g": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        frame = av.VideoFrame(*size, "yuv420p")
        for plane, value in zip(frame.planes, (60, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        packets = [*stream.encode(frame), *stream.encode(frame), *stream.encode(None)]
        picture = bytes(packets[-1])  # the first one carries a text about its encoder
        for number in range(count):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            packet.time_base, packet.duration = packets[0].time_base, 1
            container.mux(packet)
    return file.getvalue()


def vp8_of_claimed_size(width: int, height: int) -> bytes:
    """A small WebM whose pictures say that they are of another size: VP8 has it in plain bits of each keyframe."""
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=25, options={"threads": "1", "g": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(126):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    start, claim = b"\x9d\x01\x2a", struct.pack("<HH", width, height)
    return file.getvalue().replace(start + struct.pack("<HH", 64, 48), start + claim)


def forged_index(clip: bytes, box: bytes, offset: int, *numbers: int) -> bytes:
    """Write 32-bit numbers at `offset` after the name of the first box of this kind."""
    place = clip.index(box) + 4 + offset
    return clip[:place] + struct.pack(f">{len(numbers)}I", *numbers) + clip[place + 4 * len(numbers) :]
