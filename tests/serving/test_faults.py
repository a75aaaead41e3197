"""What breaks in production: Triton dies, a model of it dies, the transformer is told to stop, too many ask at once.

With the genuine Triton, under load. Only what was in flight may be lost, and only with UNAVAILABLE.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mvfoul.errors import MVFoulError, OverloadedError, UnavailableError
from serving.client import FoulClient
from serving.local_triton import LocalTriton

CLIENTS = 4
ALL_PAUSES_S = 0.375
"""At least, between the five attempts of one request: the pauses double from 50 ms, and each may be half as long."""


@dataclass(frozen=True)
class Asked:
    """One request; times of `time.monotonic()`."""

    began: float
    ended: float
    outcome: object
    """ "ok", or the class of the error."""


@dataclass(frozen=True)
class Restart:
    """A Triton that was killed and started again under load; times of `time.monotonic()`."""

    asked: list[Asked]
    patiently: list[Asked]
    """Through the transformer that waits for Triton."""
    killed: float
    cured: float
    triton: LocalTriton
    """The new one."""


def ask(client, clips):
    """Note what became of one request."""
    began = time.monotonic()
    try:
        client.classify(clips)
    except MVFoulError as error:
        return Asked(began, time.monotonic(), type(error))
    return Asked(began, time.monotonic(), "ok")


@contextmanager
def load(server, clips, clients=CLIENTS, timeout_s=30.0):
    """Requests without a pause from several clients; yields the list that grows."""
    asked, enough = [], threading.Event()

    def press():
        with FoulClient(server.grpc, timeout_s=timeout_s) as client:
            while not enough.is_set():
                asked.append(ask(client, clips))
                enough.wait(0.02)  # a refusal takes no time, and the machine has other work

    with ThreadPoolExecutor(clients) as pool:
        pressing = [pool.submit(press) for _ in range(clients)]
        try:
            yield asked
        finally:
            enough.set()
    for future in pressing:
        future.result()


def is_ready(server):
    return httpx.get(f"{server.http}/v2/health/ready", timeout=30).status_code == 200


def triton_retries(server):
    (line,) = re.findall(r"^mvfoul_triton_retries_total (\S+)$", httpx.get(f"{server.http}/metrics").text, re.MULTILINE)
    return float(line)


def answered_since(asked, moment):
    return sum(request.outcome == "ok" for request in asked if request.began > moment)


def models_of(pid):
    """The processes of Triton's python models, by the name of the model in their arguments."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if folder.name.isdigit() and parent == pid:
                arguments = (folder / "cmdline").read_text()
                found[int(folder.name)] = arguments
        except (OSError, ValueError, IndexError):
            continue
    return found


@pytest.fixture(scope="module")
def behind(start_triton, triton_repository):
    """`behind()`: a Triton on the same ports each time; the last one is stopped at the end."""
    running = []

    def start():
        ports = {"ports": running[0].ports} if running else {}
        running.append(start_triton(triton_repository, **ports))
        return running[-1]

    yield start
    running[-1].kill()  # it waits half a minute for a model that is dead


@pytest.fixture(scope="module")
def first_triton(behind):
    return behind()


@pytest.fixture(scope="module")
def transformer(start_server, first_triton):
    with start_server("--triton", first_triton.grpc, "--self-test-interval-s", "1") as server:
        yield server
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def patient(start_server, first_triton):
    """A transformer that asks Triton again for longer than Triton takes to start."""
    with start_server("--triton", first_triton.grpc, "--triton-retries", "11") as server:
        yield server
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def restarted(first_triton, transformer, patient, behind, clips, wait_until):
    """Triton is killed and started again under load; everything that was asked, and when what happened."""
    with load(patient, clips[:1], clients=2, timeout_s=100) as patiently, load(transformer, clips[:1]) as asked:
        wait_until(lambda: min(answered_since(asked, 0), answered_since(patiently, 0)) > 20, "answers before")
        killed = time.monotonic()
        first_triton.kill()
        wait_until(lambda: not is_ready(transformer), "not ready without Triton")
        triton = behind()
        wait_until(lambda: is_ready(transformer), "ready with the new Triton")
        cured = time.monotonic()
        wait_until(lambda: answered_since(asked, cured) > 20, "answers after")
    return Restart(asked, patiently, killed, cured, triton)


def test_a_killed_triton_loses_only_what_met_nobody_and_a_new_one_on_its_port_is_found(restarted, transformer):
    asked, killed, cured = restarted.asked, restarted.killed, restarted.cured
    assert {request.outcome for request in asked} == {"ok", UnavailableError}
    assert {request.outcome for request in asked if request.ended < killed or request.began > cured} == {"ok"}
    # None was given up before Triton was asked again, with pauses.
    lost = [request.ended - request.began for request in asked if request.outcome is UnavailableError]
    assert min(lost) > ALL_PAUSES_S
    assert triton_retries(transformer) >= 4 * len(lost)


def test_with_retries_for_longer_than_triton_is_away_nothing_is_lost(restarted, patient):
    """Also what was in flight: computing it twice has no effect."""
    during = [a for a in restarted.patiently if a.began < restarted.cured and a.ended > restarted.killed]
    assert len(during) >= 2
    assert {request.outcome for request in restarted.patiently} == {"ok"}
    assert triton_retries(patient) > 0


def test_a_killed_model_turns_readiness_false_though_triton_calls_itself_ready(
    restarted, transformer, clips, wait_until
):
    triton = restarted.triton
    encoder = [pid for pid, arguments in models_of(triton.pid).items() if "encoder" in arguments]
    assert encoder, models_of(triton.pid)
    for pid in encoder:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_ready(transformer), "not ready with a dead model")
    assert triton.is_ready()
    with FoulClient(transformer.grpc) as client:
        assert ask(client, clips[:1]).outcome is UnavailableError


@pytest.fixture
def narrow(start_server, triton):
    """A transformer that takes a few requests at a time."""
    with start_server("--triton", triton.grpc, "--max-in-flight", "4", "--decode-workers", "1") as server:
        yield server


def test_too_many_requests_are_refused_at_once_and_a_stop_loses_none_that_was_taken(narrow, clips, wait_until):
    with load(narrow, clips, clients=16) as asked:
        wait_until(lambda: answered_since(asked, 0) > 10, "answers under overload")
        wait_until(lambda: any(request.outcome is OverloadedError for request in asked), "refusals")
        stopped = time.monotonic()
        narrow.process.send_signal(signal.SIGTERM)
        assert narrow.process.wait(30) == 0
    answered = [request.ended - request.began for request in asked if request.outcome == "ok"]
    refused = [request.ended - request.began for request in asked if request.outcome is OverloadedError]
    assert statistics.median(refused) < statistics.median(answered) / 4
    outcomes = Counter(request.outcome for request in asked)
    assert set(outcomes) == {"ok", OverloadedError, UnavailableError}
    # What was answered after the signal had been taken before it; nothing that was taken ended otherwise.
    late = [request for request in asked if request.began < stopped < request.ended and request.outcome == "ok"]
    assert late
    log = narrow.log.read_text()
    assert "Traceback" not in log
    assert "INFO mvfoul.serving stopped" in log
    assert " refused: cancelled" not in log
