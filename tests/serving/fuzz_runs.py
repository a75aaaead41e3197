"""Sends the cases of `fuzz_cases` to a server, and what may come back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import grpc

from tests.serving.fuzz_cases import mutated

# DEADLINE_EXCEEDED and 504 for those whose parameter timeout asks for it.
GRPC_STATUSES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
HTTP_STATUSES = {200, 400, 404, 413, 429, 504}
PATH = "/v2/models/mvfoul/infer"


def peak_bytes(pid):
    """The largest resident size so far: memory that was given back counts."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def status_of(call):
    """Make a call; return its status and message."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def refused(seen, allowed):
    """Return what is not allowed of {status: example}."""
    return {status: example for status, example in seen.items() if status not in allowed}


def send_grpc(stub, cases, seed):
    """Send one case; return its status and message."""
    request = cases.grpc(Random(f"grpc{seed}"))
    return status_of(lambda: stub.ModelInfer(request, timeout=60))


def send_rest(http, cases, seed):
    """Send one case; return its status and the answer's text."""
    body, headers = cases.rest(Random(f"rest{seed}"))
    answer = http.post(PATH, content=body, headers=headers)
    return answer.status_code, answer.text


def send_unreadable(channel, cases, seed):
    """Send bytes that may be no message; return the status and its message."""
    rng = Random(f"unreadable{seed}")
    method = rng.choices(("ModelInfer", "ModelMetadata", "ModelReady", "ServerReady"), (12, 1, 1, 1))[0]
    ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    message = mutated(cases.grpc(rng).SerializeToString(), rng)
    return status_of(lambda: ask(message, timeout=60))


def fuzz_grpc(stub, cases, seeds):
    """Send a case per seed; return how often each status came, and an example of each."""
    return _fuzz(lambda seed: send_grpc(stub, cases, seed), seeds)


def fuzz_rest(http, cases, seeds):
    """As `fuzz_grpc`."""
    return _fuzz(lambda seed: send_rest(http, cases, seed), seeds)


def _fuzz(send, seeds):
    counts, examples = Counter(), {}
    for seed in seeds:
        status, text = send(seed)
        counts[status] += 1
        examples.setdefault(status, (seed, text[:300]))
    return counts, examples
