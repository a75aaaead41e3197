"""A server's life: what it refuses to start with, where it listens, how it behaves when full, how it ends."""

from __future__ import annotations

import base64
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from mvfoul.artifact import ENCODER, GOLDEN, load_artifact, write_manifest
from mvfoul.errors import ArtifactError, MVFoulError, OverloadedError, ServiceError, UnavailableError
from serving.client import FoulClient
from serving.config import ServeConfig
from serving.loading import load_here
from serving.priority_pool import PriorityPool


def outcome(client, clips):
    """Return "ok", or the class of the error."""
    try:
        client.classify(clips)
    except MVFoulError as error:
        return type(error)
    return "ok"


def in_flight(http):
    lines = httpx.get(f"{http}/metrics", timeout=30).text.splitlines()
    (line,) = [line for line in lines if line.startswith("mvfoul_requests_in_flight ")]
    return float(line.split()[1])


def test_a_damaged_artifact_is_refused_with_its_cure(run_module, tiny_artifact, tmp_path):
    artifact = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    with (artifact / ENCODER).open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\0\1\2\3")
    done = run_module("serving", "--artifact", str(artifact), "--http-port", "0", "--grpc-port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "encoder.onnx has SHA-256" in done.stderr
    assert "export again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failing_self_test_keeps_the_server_from_starting(run_module, tiny_artifact, tmp_path):
    artifact = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    with np.load(artifact / GOLDEN) as archive:
        arrays = dict(archive)
    np.savez(artifact / GOLDEN, **{**arrays, "ACTION_LOGITS": arrays["ACTION_LOGITS"][::-1]})
    write_manifest(artifact, load_artifact(tiny_artifact).manifest)
    done = run_module("serving", "--artifact", str(artifact), "--http-port", "0", "--grpc-port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "fails its self-test in ONNX Runtime" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_is_no_artifact_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="python -m export"):
        load_here(ServeConfig(artifact=tmp_path), tmp_path, "primary", PriorityPool(1, "graphs"))


@pytest.mark.parametrize(("flag", "other"), [("--http-port", "--grpc-port"), ("--grpc-port", "--http-port")])
def test_a_taken_port_is_refused_by_its_flag(run_module, server, tiny_artifact, flag, other):
    taken = (server.http if flag == "--http-port" else server.grpc).rsplit(":", 1)[1]
    done = run_module("serving", "--artifact", str(tiny_artifact), flag, taken, other, "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"choose another {flag}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_is_answered_without_its_inside_and_leaves_a_traceback_in_the_log(tiny_artifact, clips):
    """A server whose encoder fails, in a process of its own. Both protocols; it goes on."""
    code = (
        "import sys; from serving.__main__ import main; from serving.engine import Engine\n"
        "def fail(*_): raise ZeroDivisionError('secret')\n"
        "Engine._finish = fail\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "--artifact", str(tiny_artifact), "--http-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready = dict(word.split("=", 1) for word in process.stdout.readline().split()[1:])
        with FoulClient(ready["grpc"]) as client, pytest.raises(ServiceError, match="internal error") as failed:
            client.classify(clips[:1])
        data = [base64.b64encode(clips[0]).decode()]
        body = {"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [1], "data": data}]}
        response = httpx.post(f"http://{ready['http']}/v2/models/mvfoul/infer", json=body, timeout=30)
        assert httpx.get(f"http://{ready['http']}/v2/health/ready").status_code == 200
    finally:
        process.terminate()
        log = process.communicate(timeout=30)[1]
    assert "secret" not in str(failed.value)
    assert type(failed.value).exit_code == 5
    assert (response.status_code, response.json()["error"]) == (500, "internal error; the server's log has it.")
    assert log.count("Traceback") == 2
    assert log.count("ZeroDivisionError: secret") == 2


def test_the_default_address_is_this_machine_only(server):
    """By the kernel's list of listening sockets: 0100007F is 127.0.0.1, after zeros and FFFF in a socket of IPv6."""
    ports = {f"{int(address.rsplit(':', 1)[1]):04X}" for address in (server.http, server.grpc)}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1].split(":") for row in rows if row[3] == "0A"]
    hosts = {port: host.removeprefix("0" * 16 + "FFFF0000") for host, port in listening if port in ports}
    assert hosts == dict.fromkeys(ports, "0100007F")


def test_another_address_can_be_chosen_for_both_protocols(start_server, clips):
    with start_server("--host", "127.0.0.2") as server:
        assert server.http.startswith("http://127.0.0.2:")
        assert httpx.get(f"{server.http}/v2/health/ready").status_code == 200
        with FoulClient(server.grpc) as client:
            assert client.classify(clips[:1]).artifact == server.artifact
        for address in (server.http, server.grpc):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])))


def test_a_full_server_refuses_at_once_and_recovers(start_server, clips):
    """Both protocols; meanwhile health checks and metrics are answered."""
    clips = clips[:2]
    data = [base64.b64encode(clip).decode() for clip in clips]
    body = {"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [len(clips)], "data": data}]}
    enough = threading.Event()
    with start_server("--max-in-flight", "1", "--decode-workers", "1") as server, FoulClient(server.grpc) as client:

        def press():
            seen = set()
            while not enough.wait(0.01):
                seen.add(outcome(client, clips))
            return seen

        with ThreadPoolExecutor(2) as pool:
            pressing = [pool.submit(press) for _ in range(2)]
            try:
                statuses = set()
                while 429 not in statuses:  # pytest's timeout ends it
                    statuses.add(httpx.post(f"{server.http}/v2/models/mvfoul/infer", json=body, timeout=60).status_code)
                assert httpx.get(f"{server.http}/v2/health/live").status_code == 200
                assert httpx.get(f"{server.http}/v2/health/ready").status_code == 200
            finally:
                enough.set()
        assert set().union(*(future.result() for future in pressing)) == {"ok", OverloadedError}
        assert statuses <= {200, 429}
        assert outcome(client, clips) == "ok"
        assert 'mvfoul_errors_total{reason="overloaded"} 0.0' not in httpx.get(f"{server.http}/metrics").text


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_answers_what_is_in_flight(start_server, wait_until, clips, stop):
    with start_server("--max-in-flight", "64", "--decode-workers", "1") as server, FoulClient(server.grpc) as client:
        with ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(outcome, client, clips[:1]) for _ in range(24)]
            wait_until(lambda: in_flight(server.http) >= 4, "four requests in flight")
            server.process.send_signal(stop)
            outcomes = [future.result() for future in asked]
        assert server.process.wait(30) == 0
        assert outcomes.count("ok") >= 4
        # What had not arrived yet is told to go elsewhere; nothing gets a wrong status.
        assert set(outcomes) <= {"ok", UnavailableError}
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("flag", ["--canary", "--shadow"])
def test_a_damaged_second_artifact_is_refused_before_the_server_is_ready(run_module, tiny_artifact, tmp_path, flag):
    """A rollout stops there; later it would replace servers that answer."""
    broken = shutil.copytree(tiny_artifact, tmp_path / "broken")
    (broken / "encoder.onnx").write_bytes(b"no graph")
    done = run_module(
        "serving", "--artifact", str(tiny_artifact), flag, str(broken), "--http-port", "0", "--grpc-port", "0"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "encoder.onnx" in done.stderr
    assert "Traceback" not in done.stderr
