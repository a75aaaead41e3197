"""A bounded stream of requests, as a match and its bad days would send: clips over gRPC and REST, sessions, faults."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mvfoul.errors import ServiceError
from scripts.monitoring.stack import Stack

if TYPE_CHECKING:
    from serving.client import FoulClient

_TIMEOUT_S = 30
_TRIGGER_EVERY_S = 4
_MODEL = "/v2/models/mvfoul/infer"


def actions_in(data: Path, *, at_most: int = 40) -> list[list[bytes]]:
    """The clips of some actions of a data set in the official layout, a list for each action.

    Raises:
        FileNotFoundError: There are none.
    """
    folders = sorted({clip.parent for clip in data.glob("*/action_*/clip_*.mp4")})[:at_most]
    if not folders:
        raise FileNotFoundError(f"no */action_*/clip_*.mp4 in {data}; python -m training.synthetic makes some")
    return [[clip.read_bytes() for clip in sorted(folder.glob("clip_*.mp4"))] for folder in folders]


@contextmanager
def steady_load(stack: Stack, actions: Sequence[list[bytes]], *, pause_s: float) -> Iterator[None]:
    """Send requests to every server until the context ends: one sender each, with pauses of `pause_s` on average."""
    stop = threading.Event()
    senders = [
        threading.Thread(target=_send, args=(grpc, http, actions, pause_s, stop))
        for grpc, http in zip(stack.grpc, stack.http, strict=True)
    ]
    senders.append(threading.Thread(target=_trigger, args=(stack.live, stop)))
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        stop.set()
        for sender in senders:
            sender.join()


def burst(http: str, clips: Sequence[bytes], *, requests: int) -> None:
    """Send many requests at the same moment: more than a server accepts."""
    senders = [threading.Thread(target=_rest, args=(http, clips)) for _ in range(requests)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


def _send(grpc: str, http: str, actions: Sequence[list[bytes]], pause_s: float, stop: threading.Event) -> None:
    from serving.client import FoulClient

    chance = random.Random(grpc)  # noqa: S311
    turn = 0
    with FoulClient(grpc) as client:
        while not stop.wait(chance.expovariate(1 / pause_s)):
            clips = chance.choice(actions)
            turn += 1
            if turn % 7 == 3:
                _session(http, clips, f"action-{turn}")
            elif turn % 11 == 5:
                _rest(http, [b"this is no video", *clips[1:]])
            elif turn % 3 == 1:
                _rest(http, clips)
            else:
                _grpc(client, clips)


def _trigger(live: str, stop: threading.Event) -> None:
    """An operator presses the button now and then."""
    while not stop.wait(_TRIGGER_EVERY_S):
        _post(f"{live}/api/trigger", {"source": "http", "seconds_ago": 2.0})


def _grpc(client: FoulClient, clips: Sequence[bytes]) -> None:
    try:
        client.classify(clips)
    except ServiceError:
        time.sleep(0.2)


def _session(http: str, clips: Sequence[bytes], action_id: str) -> None:
    """The views of one action arrive one by one."""
    for clip in clips:
        _rest(http, [clip], action_id=action_id)


def _rest(http: str, clips: Sequence[bytes], **parameters: str) -> None:
    data = [base64.b64encode(clip).decode() for clip in clips]
    tensor = {"name": "CLIPS", "datatype": "BYTES", "shape": [len(data)], "data": data}
    _post(http + _MODEL, {"inputs": [tensor], "parameters": parameters})


def _post(address: str, body: dict[str, object]) -> None:
    """Ask once; what is refused is for the metrics to count."""
    content = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), content)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            answer.read()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        time.sleep(0.2)
