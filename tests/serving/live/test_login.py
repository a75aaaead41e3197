"""Who may use the console, over HTTP, gRPC and in the browser; and whose name the audit log has."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.struct_pb2 import Struct

from mvfoul.errors import ConfigError, UnauthenticatedError
from serving.door import Door
from serving.live.audit import verify
from serving.live.config import AccessConfig, LiveConfig
from serving.live.desk import DOUBLE_PRESS_S
from serving.live.login import make_access, who_is
from tests.serving.authority import Authority, make_authority

ANNA, TRUCK, BERT = "anna" * 5, "truck" * 4, "bert" * 6
FOLLOWED_S = 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# who may operate\nanna {ANNA}\nvar-truck {TRUCK}\n")
    return path


@pytest.fixture(scope="module")
def closed(
    start_console: Any,
    camera_flags: list[str],
    unsure_server: Any,
    until_ready: Any,
    tokens: Path,
    authority: Authority,
) -> Iterator[Any]:
    """A console with tokens and TLS."""
    cert, key = authority.issue("console")
    flags = ("--access.token-file", str(tokens), "--access.tls-cert", str(cert), "--access.tls-key", str(key))
    with start_console(*camera_flags, "--server", unsure_server.grpc, "--grpc-port", "0", *flags) as console:
        console.http = httpx.Client(
            base_url=console.url,
            auth=("anna", ANNA),
            timeout=20,
            verify=ssl.create_default_context(cafile=authority.cert),
        )
        console.state = lambda: console.http.get("/api/state").json()
        until_ready(console)
        yield console
        console.http.close()
    assert verify(console.audit).faults == ()


def basic(name: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{token}".encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "name"),
    [
        (basic("anna", ANNA), "anna"),
        (basic("", ANNA), "anna"),
        (f"Bearer {TRUCK}", "var-truck"),
        (f"bearer  {TRUCK} ", "var-truck"),
        (basic("var-truck", ANNA), None),
        (basic("anna", ""), None),
        (basic("anna", ANNA + "x"), None),
        ("Basic anna:" + ANNA, None),
        ("Basic /w==", None),
        (f"Digest {ANNA}", None),
        (ANNA, None),
        ("", None),
    ],
)
def test_a_name_and_its_token_or_a_token_alone_tell_who_it_is(
    tokens: Path, authorization: str, name: str | None
) -> None:
    door = Door(tokens)
    if name is None:
        with pytest.raises(UnauthenticatedError) as refused:
            who_is(door, authorization)
        assert ANNA not in str(refused.value)
    else:
        assert who_is(door, authorization) == name
    assert who_is(Door(), authorization) == "", "nobody needs a token"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/static/console.js"),
        ("GET", "/api/state"),
        ("GET", "/api/events"),
        ("GET", f"/api/clips/{'0' * 64}.mp4"),
        ("GET", "/api/incidents/x/case.zip"),
        ("GET", "/openapi.json"),
        ("POST", "/api/trigger"),
        ("POST", "/api/incidents/x/drop"),
    ],
)
def test_without_a_token_everything_but_health_and_metrics_is_refused(closed: Any, method: str, path: str) -> None:
    answer = closed.http.request(method, path, auth=None, json={"seconds_ago": 1.5} if method == "POST" else None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert "token" in answer.json()["detail"]
    assert all(closed.http.get(open_, auth=None).status_code == 200 for open_ in ("/healthz", "/metrics"))


def test_another_origin_is_refused_although_the_browser_sends_the_token_along(closed: Any) -> None:
    answer = closed.http.post(
        "/api/trigger", json={"seconds_ago": 1.5}, headers={"Origin": "https://elsewhere.example"}
    )
    assert answer.status_code == 403


def test_the_audit_log_says_who_triggered_and_who_did_what_afterwards(closed: Any) -> None:
    name = closed.http.post("/api/trigger", json={"seconds_ago": 1.5}).json()["id"]
    closed.decided(name, views=3)
    truck = {"Authorization": f"Bearer {TRUCK}"}
    dropped = closed.http.post(f"/api/incidents/{name}/drop", json={"view": "left"}, headers=truck, auth=None)
    assert dropped.status_code == 202
    incident = closed.decided(name, views=2)
    assert incident["operator"] == "anna"
    assert [(action["action"], action["by"]) for action in incident["actions"]] == [("drop", "var-truck")]
    lines = [json.loads(line) for line in (closed.audit / "decisions.jsonl").read_text().splitlines()]
    last = [line["data"]["incident"] for line in lines if line["data"].get("incident", {}).get("id") == name][-1]
    assert (last["operator"], last["actions"][0]["by"]) == ("anna", "var-truck")
    assert ANNA not in (closed.audit / "decisions.jsonl").read_text() + closed.text()


def test_a_program_over_grpc_shows_its_token_and_may_name_its_operator(closed: Any, authority: Authority) -> None:
    credentials = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    with grpc.secure_channel(closed.grpc, credentials) as channel:
        trigger = channel.unary_unary(
            "/mvfoul.live.Console/Trigger",
            request_serializer=Struct.SerializeToString,
            response_deserializer=Struct.FromString,
        )
        body = Struct()
        body.update({"seconds_ago": 1.5, "operator": "A. Referee"})
        with pytest.raises(grpc.RpcError) as refused:
            trigger(body, timeout=20)
        # Sooner, and about the same contact, it would be the press of the test before.
        time.sleep(DOUBLE_PRESS_S)
        answer = trigger(body, metadata=[("authorization", f"Bearer {TRUCK}")], timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert answer["operator"] == "A. Referee, signed in as var-truck"


def test_the_browser_signs_in_once_and_the_page_says_as_whom(closed: Any, browser: Any) -> None:
    browser.execute_cdp_cmd("Security.setIgnoreCertificateErrors", {"ignore": True})
    try:
        # As its form would send them; from then on the browser knows both for this address.
        browser.get(closed.url.replace("//", f"//anna:{ANNA}@"))
        browser.get(closed.url)
        deadline = time.monotonic() + 30
        while "signed in as anna" not in browser.page_source:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        browser.find_element("tag name", "body").send_keys("2")
        closed.until(lambda state: state["incidents"][-1]["trigger"] == "operator", "the key's incident")
        assert closed.state()["incidents"][-1]["operator"] == "anna"
        # Its stream of events and its clips come with the same name and token.
        closed.until(lambda _: "recorded, line" in browser.page_source, "the decision is on the page")
        has_picture = "return document.querySelector('video')?.readyState >= 2"
        closed.until(lambda _: browser.execute_script(has_picture), "a clip is shown")
    finally:
        browser.get("about:blank")
        browser.execute_cdp_cmd("Security.setIgnoreCertificateErrors", {"ignore": False})


def test_a_token_file_that_changes_is_read_again(closed: Any, tokens: Path) -> None:
    before = tokens.read_text()
    tokens.write_text(before + f"bert {BERT}\n")
    deadline = time.monotonic() + FOLLOWED_S
    while closed.http.get("/api/state", auth=("bert", BERT)).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert closed.http.get("/api/state").json()["who"] == "anna"


@pytest.mark.parametrize(
    ("host", "has_tokens", "says"),
    [
        ("127.0.0.1", False, ""),
        ("0.0.0.0", False, "whoever reaches 0.0.0.0 can trigger"),  # noqa: S104
        ("10.0.0.1", True, "tokens travel unencrypted"),
    ],
)
def test_a_console_that_is_open_to_the_network_says_what_that_means(
    tokens: Path, caplog: pytest.LogCaptureFixture, host: str, has_tokens: bool, says: str
) -> None:
    access = AccessConfig(token_file=tokens if has_tokens else None)
    make_access(LiveConfig(camera=("main=a",), host=host, access=access))
    assert (says in caplog.text) if says else not caplog.records


def test_a_key_without_its_certificate_and_a_file_without_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Give --access.tls-cert and --access.tls-key"):
        AccessConfig(tls_key=tmp_path / "key")
    (tmp_path / "tokens").write_text("# nobody\n")
    with pytest.raises(ConfigError, match=r"--access.token-file .* has no token"):
        make_access(LiveConfig(camera=("main=a",), access=AccessConfig(token_file=tmp_path / "tokens")))
    (tmp_path / "cert").write_text("none")
    access = AccessConfig(tls_cert=tmp_path / "cert", tls_key=tmp_path / "cert")
    with pytest.raises(ConfigError, match=r"--access.tls-cert .* do not work .*\. They must be PEM files"):
        make_access(LiveConfig(camera=("main=a",), access=access))
