"""The transformer in front of the genuine Triton: the embedded server's contract, and views of all clients batched."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from mvfoul.artifact import load_artifact
from mvfoul.errors import InvalidClipError, MVFoulError, OverloadedError, RequestError
from serving.client import FoulClient
from serving.local_triton import TritonPorts


@pytest.fixture(scope="module")
def transformer(start_server, triton):
    with start_server("--triton", triton.grpc) as running:
        yield running


@pytest.fixture(scope="module")
def over_triton(transformer):
    with FoulClient(transformer.grpc) as opened:
        yield opened


def ask(client, clips, **parameters):
    """Return the decision as the server sent it; `parameters` are the request's."""
    tensor = triton_grpc.InferInput("CLIPS", [len(clips)], "BYTES")
    tensor.set_data_from_numpy(np.array([*clips, None], dtype=np.object_)[:-1])
    return json.loads(client.infer("mvfoul", [tensor], parameters=parameters or None).as_numpy("DECISION")[0])


def probabilities(decision):
    heads = (decision.action, decision.offence_severity)
    return [candidate.probability for head in heads for candidate in head.top2] + list(decision.view_weights)


def without_request(message):
    """Return a client's message without the server's address and the request's id."""
    return re.sub(r" \(request \w+\)", "", message).split(": ", 1)[1]


def statistics(triton, artifact):
    """Views, and calls of the encoder in Triton."""
    with triton_grpc.InferenceServerClient(triton.grpc) as client:
        (found,) = client.get_inference_statistics("mvfoul_encoder", str(artifact.model_version)).model_stats
        return found.inference_count, found.execution_count


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_both_servers_give_the_same_answer_on_the_same_clips(client, over_triton, clips, count):
    embedded, transformed = client.classify(clips[:count]), over_triton.classify(clips[:count])
    np.testing.assert_allclose(probabilities(transformed), probabilities(embedded), atol=1e-5)
    for head in ("action", "offence_severity"):
        assert getattr(transformed, head).label == getattr(embedded, head).label
    assert transformed.artifact == embedded.artifact
    assert set(embedded.server_ms) - set(transformed.server_ms) == {"queue"}


def test_both_servers_give_the_same_answer_on_the_same_views(client, over_triton, views):
    embedded, transformed = client.classify_views(views), over_triton.classify_views(views)
    np.testing.assert_allclose(probabilities(transformed), probabilities(embedded), atol=1e-5)


def test_both_servers_say_the_same_of_a_bad_request(client, over_triton, clips, views):
    bad = (
        lambda c: c.classify([clips[0], b"no video"]),
        lambda c: c.classify([clips[0]] * 6),
        lambda c: c.classify([]),
        lambda c: c.classify_views(views[:, :, :1]),
    )
    for request in bad:
        refusals = []
        for asked in (client, over_triton):
            with pytest.raises((RequestError, InvalidClipError)) as refused:
                request(asked)
            refusals.append((type(refused.value), without_request(str(refused.value))))
        assert refusals[0] == refusals[1]


def test_both_servers_describe_the_same_model(server, transformer):
    embedded, transformed = (httpx.get(f"{at.http}/v2/models/mvfoul").json() for at in (server, transformer))
    assert transformed.pop("platform").startswith("Triton at ")
    assert embedded.pop("platform").startswith("ONNX Runtime ")
    assert transformed == embedded


def test_requests_of_different_clients_share_encoder_batches(transformer, triton, artifact, clips):
    """By Triton's own statistics: as many views as were sent, in fewer calls than requests."""
    sent = [clips[k % 3 : k % 3 + 1 + k % 2] for k in range(8)]

    def classify(action):
        with FoulClient(transformer.grpc) as client:
            return client.classify(action)

    for _ in range(5):  # whether requests meet in the queue is a matter of time
        views_before, calls_before = statistics(triton, artifact)
        with ThreadPoolExecutor(len(sent)) as pool:
            list(pool.map(classify, sent))
        views_after, calls_after = statistics(triton, artifact)
        assert views_after - views_before == sum(map(len, sent))
        if calls_after - calls_before < len(sent):
            return
    raise AssertionError("eight concurrent requests never shared a batch, in five rounds")


def test_each_new_view_of_a_session_costs_one_view_in_triton(transformer, triton, artifact, over_triton, clips):
    at_once = over_triton.classify(clips[:3])
    before, _ = statistics(triton, artifact)
    with triton_grpc.InferenceServerClient(transformer.grpc) as client:
        decisions = [ask(client, clips[v : v + 1], action_id="one by one") for v in range(3)]
        repeated = ask(client, clips[:1], action_id="one by one")
    after, _ = statistics(triton, artifact)
    assert after - before == 3
    assert [decision["session"]["views"] for decision in [*decisions, repeated]] == [1, 2, 3, 3]
    np.testing.assert_allclose(decisions[-1]["view_weights"], at_once.view_weights, atol=1e-5)


def test_views_through_shared_memory_give_the_same_answer_and_leave_nothing_behind(
    start_server, triton, client, clips, views
):
    with start_server("--triton", triton.grpc, "--triton-shared-memory") as server, FoulClient(server.grpc) as shared:
        for count in (1, 5, 2):
            np.testing.assert_allclose(
                probabilities(shared.classify(clips[:count])), probabilities(client.classify(clips[:count])), atol=1e-5
            )
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda v: shared.classify_views(views[v : v + 1]), [0, 1, 2, 3] * 3))
        for v, decision in zip([0, 1, 2, 3] * 3, together, strict=True):
            expected = client.classify_views(views[v : v + 1])
            np.testing.assert_allclose(probabilities(decision), probabilities(expected), atol=1e-5)
        assert shared_memory_names(server)
        assert regions_of(triton) == shared_memory_names(server)
    assert not shared_memory_names(server)
    assert not regions_of(triton), "Triton has let go of the memory, too"


def regions_of(triton):
    """The regions of shared memory that Triton holds."""
    with triton_grpc.InferenceServerClient(triton.grpc) as client:
        return set(client.get_system_shared_memory_status().regions)


def shared_memory_names(server):
    """The transformer's regions."""
    return {path.name for path in Path("/dev/shm").glob(f"mvfoul-{server.process.pid}-*")}  # noqa: S108


def test_an_artifact_that_triton_does_not_have_never_becomes_ready(triton, second_artifact, tmp_path, wait_until):
    """Another artifact's answers cannot be taken for its own; the log names what is missing."""
    (http,) = free_ports(1)
    flags = ("--http-port", str(http), "--grpc-port", "0", "--self-test-interval-s", "1")
    command = (sys.executable, "-m", "serving", "--artifact", str(second_artifact), "--triton", triton.grpc, *flags)
    log = tmp_path / "log"
    with log.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process:
        try:
            wait_until(lambda: "python -m serving.repository" in log.read_text(), "the reason in the log")
            assert httpx.get(f"http://127.0.0.1:{http}/v2/health/live").status_code == 200
            assert httpx.get(f"http://127.0.0.1:{http}/v2/health/ready").status_code == 503
        finally:
            process.terminate()
        assert process.stdout.read() == b"", "not a word of READY"
        assert process.wait(30) == 0


def test_a_transformer_that_starts_before_triton_is_ready_after_it(start_server, start_triton, triton_repository):
    http, grpc, metrics = free_ports(3)
    with ThreadPoolExecutor(1) as pool:
        context = start_server("--triton", f"127.0.0.1:{grpc}")
        starting = pool.submit(context.__enter__)
        time.sleep(3)
        assert not starting.done()
        with start_triton(triton_repository, ports=TritonPorts(http, grpc, metrics)):
            server = starting.result(60)
            assert httpx.get(f"{server.http}/v2/health/ready").status_code == 200
            context.__exit__(None, None, None)
    assert server.process.returncode == 0


def free_ports(count):
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def test_a_swap_behind_the_transformer_fails_no_request_and_mixes_no_answer(
    start_server, start_triton, write_repository, tiny_artifact, second_artifact, tmp_path, clips
):
    """Triton in explicit mode, at first without a model: the second version is loaded while the first answers."""
    repository = tmp_path / "models"
    write_repository(repository)
    directory = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    versions = [load_artifact(path).version for path in (tiny_artifact, second_artifact)]
    enough, seen, failures = threading.Event(), [], []

    def press(target):
        with FoulClient(target) as client:
            while not enough.is_set():
                try:
                    decision = client.classify(clips[:2])
                except OverloadedError:
                    continue
                except MVFoulError as error:
                    failures.append(error)
                    return
                seen.append((decision.artifact, round(decision.action.confidence, 4)))

    flags = ("--admin", "--triton-explicit", "--triton-shared-memory", "--swap-timeout-s", "3")
    with (
        start_triton(repository, control="explicit") as triton,
        start_server("--triton", triton.grpc, *flags, artifact=directory) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        pressing = [pool.submit(press, server.grpc) for _ in range(3)]
        try:
            shutil.rmtree(directory)
            shutil.copytree(second_artifact, directory)
            refused = httpx.post(f"{server.http}/admin/reload", timeout=120)
            write_repository(repository, artifact=second_artifact)
            swapped = httpx.post(f"{server.http}/admin/reload", timeout=120)
            count = len(seen)
            while len(seen) < count + 6 and not failures:  # pytest's timeout ends it
                time.sleep(0.05)
            while regions_of(triton) != shared_memory_names(server):  # until the old artifact's are gone
                time.sleep(0.05)
        finally:
            enough.set()
        for future in pressing:
            future.result()
    assert not failures
    assert refused.status_code == 409
    assert "python -m serving.repository" in refused.json()["error"]
    assert swapped.json() == {"primary": versions[1]}
    assert {version for version, _ in seen} == set(versions)
    assert len(set(seen)) == 2, "one answer per version"


def test_a_triton_in_explicit_mode_that_is_restarted_gets_its_models_and_regions_back(
    start_server, start_triton, triton_repository, clips, wait_until
):
    """The new one has no model and knows no shared memory; nobody but the transformer tells it."""
    explicit = ("--triton-explicit", "--triton-shared-memory", "--self-test-interval-s", "1")
    first = start_triton(triton_repository, control="explicit")
    with start_server("--triton", first.grpc, *explicit) as server, FoulClient(server.grpc) as client:
        before = client.classify(clips[:2])
        first.kill()
        wait_until(lambda: httpx.get(f"{server.http}/v2/health/ready").status_code == 503, "it is not ready")
        with start_triton(triton_repository, control="explicit", ports=first.ports) as second:
            wait_until(lambda: httpx.get(f"{server.http}/v2/health/ready").status_code == 200, "it is ready again")
            np.testing.assert_allclose(probabilities(client.classify(clips[:2])), probabilities(before), atol=1e-5)
            assert regions_of(second)
