"""Reviewing recorded actions, in a real Chromium over a real server."""

from __future__ import annotations

import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from selenium.webdriver.common.by import By

from mvfoul.clip import preset
from mvfoul.errors import ConfigError
from serving.client import Decision, FoulClient
from serving.live.library import find_cases
from serving.live.saliency import CancelledError, Probe, occlusion

WAIT_S = 30
FIELDS = {"Offence": "Offence", "Severity": "3.0", "Action class": "Holding", "Contact": "With contact"}


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, scenes: dict[str, str]) -> Path:
    """Two actions in the official layout and one folder of clips."""
    root = tmp_path_factory.mktemp("recorded")
    names = [("test/action_0", ["main", "left"]), ("test/action_10", ["right"]), ("loose", ["main"])]
    for folder, views in names:
        (root / folder).mkdir(parents=True)
        for i, view in enumerate(views):
            shutil.copy(scenes[view], root / folder / f"clip_{i}.mp4")
    actions = {"0": {**FIELDS, "Clips": [{"Camera type": "Main", "Replay speed": 1.0}]}, "10": {"Offence": "Between"}}
    (root / "test" / "annotations.json").write_text(json.dumps({"Set": "test", "Actions": actions}))
    return root


@pytest.fixture(scope="module")
def review(start_console: Any, unsure_server: Any, recorded: Path) -> Iterator[Any]:
    with start_console("--review", str(recorded), "--server", unsure_server.grpc) as running:
        yield running


def test_cases_are_found_with_what_was_annotated(recorded: Path) -> None:
    cases = find_cases(recorded)
    assert list(cases) == ["loose", "test/action_0", "test/action_10"]
    assert cases["loose"].truth is None
    assert cases["test/action_0"].truth == {"action": "Holding", "offence_severity": "Offence + Yellow card"}
    assert cases["test/action_10"].truth == {"action": "", "offence_severity": ""}
    assert cases["test/action_0"].facts["clip_0"] == "Main, replay speed 1.0"


def test_the_real_sample_is_found(sample_root: Path) -> None:
    cases = find_cases(sample_root)
    assert [len(case.clips) for case in cases.values()] == [3, 3, 3]
    assert cases["test/action_0"].truth == {
        "action": "Standing tackling",
        "offence_severity": "Offence + Yellow card",
    }


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no clips"):
        find_cases(tmp_path)


def test_a_case_shows_truth_each_view_alone_what_moved_it_and_is_exported(browser: Any, review: Any) -> None:
    def text(selector: str) -> str:
        return browser.execute_script("return document.querySelector(arguments[0]).innerText", selector)

    def click(selector: str) -> None:
        browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    browser.get(review.url)
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "[data-case]")) == 3, "the list")
    click('[data-case="test/action_0"]')
    until(lambda: "recorded, line" in text("#decision"), "the decision")
    assert "annotated: Holding" in text("#decision")
    assert "annotated: Offence + Yellow card" in text("#decision")
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "[data-alone]")) == 2, "each view alone")
    assert "With contact" in text("#facts")
    click("#explain")
    until(lambda: "falls by" in text("#saliency-text"), "what moved it")
    canvas = browser.find_element(By.CSS_SELECTOR, 'figure[data-view="clip_0"] canvas')
    assert canvas.get_attribute("width") == "4"
    assert canvas.get_attribute("data-span") == "1", "of four; the frame seen before the contact is in it"
    name = review.state()["incidents"][0]["id"]
    archive = zipfile.ZipFile(io.BytesIO(httpx.get(f"{review.url}/api/incidents/{name}/case.zip").content))
    assert {"clips/clip_0.mp4", "clips/clip_1.mp4", "decision.json", "report.html"} == set(archive.namelist())
    assert json.loads(archive.read("decision.json"))["truth"]["action"] == "Holding"
    assert "Annotated" in archive.read("report.html").decode()
    # What other tests' consoles left in it does not count.
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE" and review.address in e["message"]] == []


def test_dropped_files_make_a_case_and_a_file_that_is_no_video_says_so(
    browser: Any, review: Any, scenes: dict[str, str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    browser.get(review.url)
    until(lambda: browser.find_elements(By.CSS_SELECTOR, "[data-case]"), "the list")
    browser.find_element(By.ID, "add").send_keys(f"{scenes['right']}\n{bad}")
    until(lambda: "1 views" in browser.find_element(By.ID, "decision").text, "a decision on the good one")
    until(lambda: browser.find_elements(By.CSS_SELECTOR, '#views tr[data-state="refused"]'), "the bad one is refused")


def test_occlusion_finds_the_region_and_the_frames_that_count() -> None:
    spec = preset("two-second", num_frames=8, size_px=32)
    view = np.zeros((3, 8, 32, 32), np.uint8)
    view[:, 4:6, 8:16, 24:32] = 255

    def ask(shown: np.ndarray) -> Decision:
        share = 0.1 + 0.8 * float(shown[:, 4:6, 8:16, 24:32].mean()) / 255
        return _decision(share)

    told: list[tuple[int, int]] = []
    result = occlusion(ask, view, spec, progress=lambda done, total: told.append((done, total)))
    fall = result.fall["action"]
    assert np.unravel_index(fall.argmax(), fall.shape) == (2, 1, 3)
    assert fall.max() > 0.5
    assert (np.sort(fall.ravel())[:-1] <= 1e-6).all()
    assert result.spans[2] == (spec.frame_indices[4], spec.frame_indices[5])
    assert told[-1] == (64, 64)
    with pytest.raises(CancelledError):
        occlusion(ask, view, spec, progress=_cancel_after(3))


def test_a_probe_in_a_session_answers_as_all_views_at_once(client: FoulClient, views: Any) -> None:
    probe = Probe(client, views[1:3])
    dark = np.zeros_like(views[0])
    for view in (views[0], dark, views[0]):
        expected = client.classify_views(np.stack([*views[1:3], view]))
        answer = probe.ask(view)
        assert np.allclose(answer.probabilities["action"], expected.probabilities["action"], atol=1e-5)


def _cancel_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, _: int) -> None:
        if done >= count:
            raise CancelledError

    return progress


def _decision(share: float) -> Decision:
    from serving.client.decision import read_decision

    head = {
        "label": "Dive",
        "confidence": share,
        "abstain": False,
        "top2": [{"label": "Dive", "probability": share}] * 2,
    }
    document = {
        "action": head,
        "offence_severity": head,
        "view_weights": [1.0],
        "artifact": "",
        "id": "",
        "timings_ms": {},
    }
    rest = (1 - share) / 7
    probabilities = {"action": (rest,) * 7 + (share,), "offence_severity": (0.25,) * 4}
    return read_decision(document, probabilities, client_ms=0.0)
