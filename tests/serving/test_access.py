"""Who may connect and ask: tokens, certificates, limits of each client; and the name of a request in the log."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mvfoul.errors import (
    ConfigError,
    OverloadedError,
    RequestTooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from serving.access import Access
from serving.admission import Admission
from serving.client import AsyncFoulClient, FoulClient, Tls
from serving.door import Door, Shown
from serving.request_id import as_header, choose_request_id
from serving.tls import ServerTls, TlsFiles
from tests.serving.authority import make_authority

CONSOLE, BULK, ADMIN, NEW = ("console" * 3, "bulk" * 5, "admin" * 4, "renewed" * 3)
TOKENS = f"""
# name   token     limits
console  {CONSOLE}
bulk     {BULK}    max_in_flight=1 max_request_bytes=20000
admin    {ADMIN}
"""


def bearer(token):
    return Shown(authorization=f"Bearer {token}", host="10.0.0.1")


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    return path


def test_a_token_makes_a_client_known_with_its_own_limits(token_file):
    door = Door(token_file, max_in_flight=5)
    console, bulk = door.client(bearer(CONSOLE)), door.client(bearer(BULK))
    assert (console.identity, console.max_in_flight, console.max_request_bytes) == ("token:console", 5, 0)
    assert (bulk.identity, bulk.max_in_flight, bulk.max_request_bytes) == ("token:bulk", 1, 20000)


@pytest.mark.parametrize(
    "authorization", ["", CONSOLE, "Bearer", "Bearer ", f"Basic {CONSOLE}", "Bearer x", "bearer \xff"]
)
def test_anything_else_is_nobody(token_file, authorization):
    with pytest.raises(UnauthenticatedError) as refused:
        Door(token_file).client(Shown(authorization=authorization))
    assert CONSOLE not in str(refused.value)


def test_without_tokens_and_certificates_a_client_is_its_host_and_everybody_may_reload():
    assert Door().client(Shown(host="10.0.0.1")).identity == "10.0.0.1"
    Door().check_admin(Shown())


def test_with_certificates_nobody_comes_without_one(token_file):
    door = Door(certificates=True)
    assert door.client(Shown(common_name="console")).identity == "certificate:console"
    with pytest.raises(UnauthenticatedError, match="client certificate"):
        door.client(Shown(host="10.0.0.1"))
    with pytest.raises(UnauthenticatedError, match="client certificate"):
        Door(token_file, certificates=True).client(bearer(CONSOLE))


def test_only_the_client_admin_may_reload(token_file):
    door = Door(token_file)
    door.check_admin(bearer(ADMIN))
    for shown in (bearer(CONSOLE), Shown()):
        with pytest.raises(UnauthenticatedError):
            door.check_admin(shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no token"),
        ("console", "line 1 is not a name and a token"),
        ("console short", "shorter than 16"),
        (f"a {CONSOLE}\nb {CONSOLE}", "same token twice"),
        (f"a {CONSOLE}\na {BULK}", "same name twice"),
        (f"a {CONSOLE} max_in_flight=0", "line 1 has 'max_in_flight=0'"),
        (f"a {CONSOLE} speed=1", "known limits: max_in_flight=N"),
        (f"ä {CONSOLE}", "not plain ASCII"),
    ],
)
def test_a_token_file_that_makes_no_sense_is_refused_and_keeps_its_secrets(tmp_path, text, message):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        Door(path)
    assert CONSOLE not in str(refused.value)


def test_a_bad_token_file_does_not_replace_a_good_one(token_file, caplog):
    door = Door(token_file)
    token_file.write_text("")
    door.reload()
    assert door.client(bearer(CONSOLE)).name == "console"
    assert "tokens not reloaded" in caplog.text


def test_a_changed_token_file_is_read_without_a_signal(token_file):
    door = Door(token_file)

    async def change():
        following = asyncio.create_task(Access(door, files=(token_file,)).follow(every_s=0.01))
        await asyncio.sleep(0.05)
        token_file.write_text(f"renewed {NEW}")
        for _ in range(500):
            await asyncio.sleep(0.01)
            with contextlib.suppress(UnauthenticatedError):
                return door.client(bearer(NEW)).name
            assert not following.done()
        return "nobody"

    assert asyncio.run(change()) == "renewed"


def test_one_client_cannot_take_the_places_of_all():
    admission = Admission(3)
    with admission.admitted("a", 1):
        with pytest.raises(OverloadedError, match="a has 1 requests in flight, which is this client's limit"):
            admission.check("a", 1)
        with admission.admitted("b"), admission.admitted("b"):
            with pytest.raises(OverloadedError, match="this server's limit"):
                admission.check("c", 1)
            assert admission.in_flight == 3
    assert admission.in_flight == 0


def test_a_requests_own_id_comes_first_and_no_id_breaks_a_header():
    assert choose_request_id("own", "header") == "own"
    assert choose_request_id("", b"header") == "header"
    assert len(choose_request_id("", None)) == 32
    assert as_header("a b\r\nset-cookie: ä") == "a b%0D%0Aset-cookie: %C3%A4"
    assert len(as_header("x" * 1000)) == 256


def test_files_that_are_no_pair_are_refused_and_do_not_replace_good_ones(tmp_path, caplog):
    authority = make_authority(tmp_path)
    (cert, key), (_, other_key) = authority.issue("one"), authority.issue("two")
    with pytest.raises(ConfigError, match="the key that of the certificate"):
        ServerTls(TlsFiles(cert=cert, key=other_key))
    tls = ServerTls(TlsFiles(cert=cert, key=key))
    key.write_bytes(other_key.read_bytes())
    tls.reload()
    assert "certificates not reloaded" in caplog.text


# One server with tokens and TLS, one with mTLS.


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """The server's certificate, key and tokens."""
    cert, key = authority.issue("server")
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(TOKENS)
    return cert, key, tokens


@pytest.fixture(scope="module")
def guarded(start_server, files):
    cert, key, tokens = map(str, files)
    flags = ("--tls-cert", cert, "--tls-key", key, "--token-file", tokens, "--admin")
    with start_server(*flags) as server:
        yield server


@pytest.fixture
def connect(guarded, authority):
    return lambda token, ca=authority.cert: FoulClient(guarded.grpc, tls=Tls(ca=ca), token=token)


@pytest.fixture
def guarded_rest(guarded, authority):
    url = guarded.http.replace("http:", "https:")
    with httpx.Client(base_url=url, verify=rest_context(authority.cert), timeout=30) as opened:
        yield opened


def rest_context(ca, chain=None):
    import ssl

    context = ssl.create_default_context(cafile=ca)
    if chain:
        context.load_cert_chain(*chain)
    return context


def body(clips, request_id=None):
    data = [base64.b64encode(clip).decode() for clip in clips]
    document = {"inputs": [{"name": "CLIPS", "datatype": "BYTES", "shape": [len(clips)], "data": data}]}
    return {**document, "id": request_id} if request_id else document


INFER = "/v2/models/mvfoul/infer"


def test_a_known_token_gets_decisions_over_both_protocols(connect, guarded_rest, clips):
    with connect(CONSOLE) as client:
        decision = client.classify(clips[:1])
        assert client.metadata().name == "mvfoul"
    answer = guarded_rest.post(INFER, json=body(clips[:1]), headers={"authorization": f"Bearer {CONSOLE}"})
    assert answer.status_code == 200
    (action,) = [output["data"] for output in answer.json()["outputs"] if output["name"] == "ACTION_PROBABILITIES"]
    assert action == pytest.approx(decision.probabilities["action"], abs=1e-6)


def test_an_unknown_token_gets_nothing_but_health_and_metrics(connect, guarded, guarded_rest, clips):
    for token in ("", "x" * 20):
        with connect(token) as client:
            assert client.ready()
            for ask in (client.metadata, lambda: client.classify(clips[:1])):
                with pytest.raises(UnauthenticatedError):
                    ask()
    for path in ("/", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/mvfoul/ready"):
        assert guarded_rest.get(path).status_code == 200
    for path in ("/v2", "/v2/models", "/v2/models/mvfoul", "/v2/models/infer", "/v2/models/mvfoul/versions/1/ready"):
        assert guarded_rest.get(path).status_code == 401
    answer = guarded_rest.post(INFER, json=body(clips[:1]), headers={"authorization": "Bearer wrong-and-secret"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "token is not known" in answer.json()["error"]
    metrics = guarded_rest.get("/metrics").text
    assert 'mvfoul_errors_total{reason="unauthenticated"} ' in metrics
    assert 'mvfoul_errors_total{reason="unauthenticated"} 0.0' not in metrics
    assert not [secret for secret in (CONSOLE, BULK, ADMIN, "wrong-and-secret") if secret in guarded.log.read_text()]


def test_who_does_not_encrypt_or_trusts_another_authority_gets_no_connection(guarded, connect, tmp_path, clips):
    stranger = make_authority(tmp_path)
    with FoulClient(guarded.grpc, token=CONSOLE) as plain, connect(CONSOLE, stranger.cert) as wary:
        for client in (plain, wary):
            with pytest.raises(UnavailableError, match="do both sides use TLS"):
                client.classify(clips[:1])


def test_sessions_of_two_tokens_are_two_sessions(connect, clips):
    with connect(CONSOLE) as console, connect(ADMIN) as admin:
        assert console.classify(clips[:1], action_id="same").session.views == 1
        assert admin.classify(clips[1:2], action_id="same").session.views == 1
        assert console.classify(clips[1:2], action_id="same").session.views == 2


def test_a_client_has_limits_of_its_own(connect, guarded, guarded_rest, authority, clips):
    large = clips[0] + bytes(20000)
    with connect(BULK) as bulk, connect(CONSOLE) as console:
        with pytest.raises(RequestTooLargeError, match="token:bulk may send 20000"):
            bulk.classify([large])
        assert console.classify([large]).view_weights == (1.0,)
    answer = guarded_rest.post(INFER, json=body([large]), headers={"authorization": f"Bearer {BULK}"})
    assert answer.status_code == 413

    async def ask():
        settings = {"tls": Tls(ca=authority.cert)}
        async with (
            AsyncFoulClient(guarded.grpc, token=BULK, **settings) as bulk,
            AsyncFoulClient(guarded.grpc, token=CONSOLE, **settings) as console,
        ):
            many = [bulk.classify(clips[:1]) for _ in range(8)]
            return await asyncio.gather(*many, console.classify(clips), return_exceptions=True)

    *many, other = asyncio.run(ask())
    refused = [answer for answer in many if isinstance(answer, OverloadedError)]
    assert refused
    assert len(refused) < len(many)
    assert all("token:bulk has 1 requests in flight" in str(error) for error in refused)
    assert len(other.view_weights) == 5


def test_only_admin_reloads(guarded_rest):
    for token, status in (("", 401), (CONSOLE, 401), (ADMIN, 200)):
        answer = guarded_rest.post("/admin/reload", headers={"authorization": f"Bearer {token}"} if token else {})
        assert answer.status_code == status


def test_the_request_id_is_in_answers_refusals_and_the_log(guarded, guarded_rest, authority, clips):
    token = {"authorization": f"Bearer {CONSOLE}"}
    for headers, document, expected in (
        ({"x-request-id": "of-a-proxy"}, body(clips[:1]), "of-a-proxy"),
        ({"x-request-id": "of-a-proxy"}, body(clips[:1], "own"), "own"),
        ({"x-request-id": "refused-rest"}, body([b"no video"]), "refused-rest"),
    ):
        answer = guarded_rest.post(INFER, json=document, headers={**token, **headers})
        assert answer.headers["x-request-id"] == expected
        assert answer.status_code == 400 or answer.json()["id"] == expected
    assert len(guarded_rest.post(INFER, json=body(clips[:1]), headers=token).headers["x-request-id"]) == 32
    credentials = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    with grpc.secure_channel(guarded.grpc, credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="mvfoul")
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request, metadata=(("x-request-id", "refused-grpc"), *token.items()))
        assert dict(refused.value.trailing_metadata())["x-request-id"] == "refused-grpc"
    log = guarded.log.read_text()
    for expected in ("of-a-proxy", "own", "refused-rest", "refused-grpc"):
        assert f"id='{expected}'" in log


def test_the_command_takes_its_token_from_a_file_or_the_environment(guarded, authority, clips, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clips[0])
    (tmp_path / "token").write_text(f"{CONSOLE}\n")
    base = [sys.executable, "-m", "serving.client", str(tmp_path / "clip.mp4"), "--target", guarded.grpc]
    base += ["--tls-ca", str(authority.cert)]

    def ask(*flags, **variables):
        environment = {**os.environ, **variables}
        return subprocess.run([*base, *flags], capture_output=True, text=True, timeout=60, check=False, env=environment)

    assert ask("--token-file", str(tmp_path / "token")).returncode == 0
    assert ask(MVFOUL_TOKEN=CONSOLE).returncode == 0
    nobody = ask()
    assert (nobody.returncode, "the request has no token" in nobody.stderr) == (2, True)


def test_a_hangup_reads_tokens_and_certificates_again(guarded, files, connect, tmp_path, clips, wait_until):
    def reloads():
        return guarded.log.read_text().count("certificates reloaded")

    cert, key, tokens = files
    before, earlier = [path.read_bytes() for path in files], reloads()
    renewed = make_authority(tmp_path)
    new_cert, new_key = renewed.issue("server")
    try:
        for old, new in ((cert, new_cert), (key, new_key)):
            old.write_bytes(new.read_bytes())
        tokens.write_text(f"console {NEW}")
        os.kill(guarded.process.pid, signal.SIGHUP)
        # The certificates come after the tokens.
        wait_until(lambda: reloads() > earlier, "the reload")
        assert "tokens reloaded: console" in guarded.log.read_text()
        with connect(NEW, renewed.cert) as client:
            assert client.classify(clips[:1]).view_weights == (1.0,)
        with connect(CONSOLE, renewed.cert) as client, pytest.raises(UnauthenticatedError):
            client.classify(clips[:1])
        url = guarded.http.replace("http:", "https:")
        assert httpx.get(f"{url}/v2/health/ready", verify=rest_context(renewed.cert)).status_code == 200
    finally:
        for path, content in zip(files, before, strict=True):
            path.write_bytes(content)
        os.kill(guarded.process.pid, signal.SIGHUP)
        wait_until(lambda: reloads() > earlier + 1, "the way back")
        assert "tokens reloaded: console, bulk, admin" in guarded.log.read_text()


def test_with_certificates_a_client_is_its_certificates_name(start_server, files, authority, tmp_path, clips):
    cert, key, _ = map(str, files)
    chain, stranger = authority.issue("console"), make_authority(tmp_path).issue("console")
    flags = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", str(authority.cert), "--log-format", "json")
    with start_server(*flags) as server:
        mutual = Tls(ca=authority.cert, cert=chain[0], key=chain[1])
        with FoulClient(server.grpc, tls=mutual) as client:
            client.classify(clips[:1])
        for tls in (Tls(ca=authority.cert), Tls(ca=authority.cert, cert=stranger[0], key=stranger[1])):
            with FoulClient(server.grpc, tls=tls) as client, pytest.raises(UnavailableError):
                client.classify(clips[:1])
        url = server.http.replace("http:", "https:")
        with httpx.Client(base_url=url, verify=rest_context(authority.cert, chain)) as known:
            assert known.post(INFER, json=body(clips[:1])).status_code == 200
        with httpx.Client(base_url=url, verify=rest_context(authority.cert)) as probe:
            assert probe.get("/v2/health/ready").status_code == 200
            assert probe.post(INFER, json=body(clips[:1])).status_code == 401
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if '"labels"' in line]
    assert [line["client"] for line in lines] == ["certificate:console"] * 2


def test_the_transformer_proves_itself_to_triton_and_checks_it(
    start_triton, triton_repository, start_server, authority, clips
):
    cert, key = map(str, authority.issue("triton"))
    chain = list(map(str, authority.issue("transformer")))
    tls = (f"grpc-server-cert={cert}", f"grpc-server-key={key}", f"grpc-root-cert={authority.cert}")
    with start_triton(triton_repository, flags=("grpc-use-ssl=true", "grpc-use-ssl-mutual=true", *tls)) as triton:
        flags = ["--triton", triton.grpc, "--triton-tls-ca", str(authority.cert)]
        flags += ["--triton-tls-cert", chain[0], "--triton-tls-key", chain[1]]
        with start_server(*flags) as server, FoulClient(server.grpc) as client:
            assert client.classify(clips[:1]).view_weights == (1.0,)
