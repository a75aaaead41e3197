"""The operator's page in a real Chromium, over a real console, real cameras and a real server."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from serving.live.audit import verify
from serving.live.desk import DOUBLE_PRESS_S

WAIT_S = 30
BACK = "contact \N{MINUS SIGN}0.04 s"

# Reads the number that a picture of `numbered_clip` carries: two rows of four blocks, black or white.
NUMBER = """
const video = document.querySelector(`figure[data-view="${arguments[0]}"] video`);
if (!video || video.readyState < 2 || video.seeking || video.currentTime === 0) return null;
const canvas = new OffscreenCanvas(8, 4), context = canvas.getContext("2d");
context.drawImage(video, 0, 0, 8, 4);
let number = 0;
for (const y of [0, 1]) for (const x of [0, 1, 2, 3]) {
  const data = context.getImageData(2 * x, 2 * y, 2, 2).data;
  const mean = [0, 4, 8, 12].reduce((sum, i) => sum + data[i], 0) / 4;
  number = 2 * number + (mean > 127 ? 1 : 0);
}
return number;
"""


def until(condition: Callable[[], Any], what: str | Callable[[], str]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        if time.monotonic() >= deadline:
            pytest.fail(f"not within {WAIT_S} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)
    return value


class Page:
    """What people do with the page."""

    def __init__(self, browser: Any, console: Any) -> None:
        self.browser = browser
        browser.get(console.url)
        self.until_connected()

    def until_connected(self) -> None:
        until(lambda: self.text("#link") == "connected", "connected")
        until(lambda: self.find("#cameras li"), "the first snapshot")

    def find(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return self.browser.execute_script(script, selector)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def click(self, selector: str) -> None:
        self.browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def views(self, state: str) -> list[str]:
        return [row.get_attribute("data-view") for row in self.find(f'#views tr[data-state="{state}"]')]

    def until_used(self, *names: str) -> None:
        script = """return [...document.querySelectorAll('#views tr[data-state="used"]')].map(r => r.dataset.view)"""
        until(lambda: sorted(self.browser.execute_script(script)) == sorted(names), f"decided on {names}")

    def number(self, view: str) -> int:
        def shown() -> tuple[int, ...]:
            number = self.browser.execute_script(NUMBER, view)
            return () if number is None else (number,)

        return until(shown, f"a picture of {view}")[0]

    def incident(self) -> str:
        return self.browser.execute_script(
            "return document.querySelector('#history [aria-current=true]')?.dataset.incident ?? ''"
        )

    def trigger(self, key: str) -> str:
        # Within this time of a press by the test before, and about the same contact, it would be the same press.
        time.sleep(DOUBLE_PRESS_S)
        before = self.incident()
        self.press(key)
        until(
            lambda: self.incident() not in ("", before), lambda: f"a new incident; notices: {self.text('#notices')!r}"
        )
        return self.incident()


@pytest.fixture
def page(browser: Any, console: Any) -> Page:
    return Page(browser, console)


def test_a_key_brings_a_decision_with_confidences_weights_latency_and_whose_it_is(page: Page) -> None:
    page.trigger("2")
    page.until_used("main", "left", "right")
    decision = page.text("#decision")
    assert "No decision" in decision, "the action class is too unsure for an answer"
    assert re.search(r"too unsure: at best .+ \d+ %", decision)
    assert re.search(r"Offence|No offence", decision)
    assert decision.count("then ") == 2
    assert re.search(r"recorded, line \d+", decision)
    weights = [int(text) for text in re.findall(r"(\d+) %", page.text("#views"))]
    assert len(weights) == 3
    assert abs(sum(weights) - 100) <= 1
    assert re.fullmatch(r"(?s)wait.+cut.+request.+audit.+total.+ms", page.text("#latency"))
    assert "The referee decides." in page.text(".disclaimer")
    assert "not an official decision" in page.text(".disclaimer")


def test_a_held_key_is_one_press_and_space_after_a_click_presses_nothing(page: Page, console: Any) -> None:
    page.trigger("2")
    before = len(console.state()["incidents"])
    held = "document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], repeat: true, bubbles: true}))"
    for key in ("f", "3", "a"):
        page.browser.execute_script(held.replace("document.d", "document.body.d"), key)
    time.sleep(1.5)
    assert len(console.state()["incidents"]) == before
    page.find("#trigger")[0].click()
    assert page.browser.execute_script("return document.activeElement.id") != "trigger"
    until(lambda: len(console.state()["incidents"]) == before + 1, "the click's incident")


def test_a_second_press_at_once_is_the_same_one_and_is_shown(page: Page, console: Any) -> None:
    script = """const [key, done] = arguments;
const press = (which) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: which, bubbles: true }));
const shown = () => document.querySelector("#history [aria-current=true]")?.dataset.incident;
const before = shown(), start = performance.now();
press(key);
const timer = setInterval(() => {
  if (shown() === before) return;
  clearInterval(timer);
  const opened = shown();
  press("j");
  const older = shown();
  press(key);
  done([opened, older, performance.now() - start]);
}, 5);"""
    page.trigger("2")
    for _ in range(5):
        time.sleep(DOUBLE_PRESS_S)
        opened, older, apart_ms = page.browser.execute_async_script(script, "3")
        assert older != opened
        if apart_ms < 200:  # Else the console may have had the second one too late, on a busy machine.
            break
    until(lambda: page.incident() == opened, "what the first press opened is shown")
    assert console.state()["incidents"][-1]["id"] == opened


def test_errors_are_shown_before_what_cameras_say(page: Page) -> None:
    script = """const done = arguments[0];
import("/static/dom.js").then(({ noticeItems }) => {
  const notices = [{ key: "disk", level: "error", text: "NOT recorded" }];
  for (let i = 0; i < 9; i++) notices.push({ key: `camera-${i}`, level: "warning", text: "late" });
  done(noticeItems(notices).map((item) => item.dataset.key));
}, (error) => done([String(error)]));"""
    keys = page.browser.execute_async_script(script)
    assert keys[0] == "disk"
    assert len(keys) == 6


def test_the_focus_stays_where_it_is_when_the_history_is_drawn_anew(page: Page, console: Any) -> None:
    first = page.trigger("2")
    page.browser.execute_script("document.querySelector('#history [aria-current=true]').focus()")
    console.trigger(3.0)
    until(lambda: page.incident() not in ("", first), "the newer one is shown")
    assert page.browser.execute_script("return document.activeElement.dataset.incident") == first


def test_the_main_key_means_a_contact_a_moment_ago_and_the_help_says_so(page: Page, console: Any) -> None:
    name = page.trigger("f")
    page.until_used("main", "left", "right")
    incident = console.incident(name)
    assert incident["triggered_at_s"] - incident["contact_s"] == pytest.approx(1.2, abs=1e-3)
    page.press("?")
    assert "decide: contact 1.2 s ago" in page.text("#help")
    page.press(Keys.ESCAPE)


def test_all_players_step_by_exactly_one_frame_and_stay_in_step(page: Page) -> None:
    page.trigger("2")
    page.until_used("main", "left", "right")
    before = {view: page.number(view) for view in ("main", "left", "right")}
    page.press(Keys.ARROW_RIGHT)
    assert page.text("#where") == "contact +0.04 s"
    until(lambda: page.number("main") != before["main"], "the next frame")
    assert {view: (page.number(view) - number) % 250 for view, number in before.items()} == dict.fromkeys(before, 1)
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    until(lambda: (page.number("left") - before["left"]) % 250 == 249, "the frame before the contact")
    page.press("s", "s", " ")
    until(lambda: page.text("#where") not in ("contact", BACK), "slow motion moves")
    assert "0.25\N{MULTIPLICATION SIGN}" in page.text("#transport")
    page.press(" ", "c")
    assert page.text("#where") == "contact"
    page.press(Keys.ARROW_LEFT)
    page.trigger("2")
    assert page.text("#where") == "contact", "another incident begins at its own"


def test_a_dropped_view_a_moved_contact_and_a_replay_each_bring_a_new_answer(
    page: Page, console: Any, scenes: dict[str, str]
) -> None:
    name = page.trigger("3")
    page.until_used("main", "left", "right")
    page.click('[data-drop="left"]')
    page.until_used("main", "right")
    before = page.number("main")
    page.press("]")
    # The cameras are cut anew: what was dropped by hand is asked again with the new contact.
    page.until_used("main", "left", "right")
    until(lambda: (page.number("main") - before) % 250 == 1, "the cut moved by one frame")
    assert page.text("#shifted") == "+1"
    page.find("#replay")[0].send_keys(scenes["main"])
    until(lambda: len(page.find('#views tr[data-state="used"]')) == 4, "a decision with the replay")
    assert len(console.incident(name)["rulings"]) >= 4
    page.press("a")
    count = len(console.incident(name)["rulings"])
    console.until(lambda _: len(console.incident(name)["rulings"]) > count, "asked again")
    actions = [action["action"] for action in console.incident(name)["actions"]]
    assert actions == ["drop", "shift", "add", "ask again"]


def test_dark_and_light_follow_the_system_until_somebody_chooses(page: Page) -> None:
    def ground() -> str:
        return page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    def prefer(scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    prefer("light")
    light = ground()
    prefer("dark")
    assert ground() != light
    page.press("t")
    assert ground() == light
    page.browser.refresh()
    page.until_connected()
    assert ground() == light, "the choice is kept"
    page.browser.execute_script("localStorage.clear()")
    prefer("light")


def test_help_opens_with_a_key_and_every_button_has_a_name(page: Page) -> None:
    page.press("?")
    assert page.browser.execute_script("return document.getElementById('help').open")
    page.press(Keys.ESCAPE)
    assert not page.browser.execute_script("return document.getElementById('help').open")
    shown = [element for element in page.find("button, a, input, select") if element.is_displayed()]
    nameless = [element.get_attribute("outerHTML") for element in shown if not element.accessible_name]
    assert nameless == []


def test_the_decision_is_large_enough_for_three_metres_and_its_contrast_holds(page: Page) -> None:
    if not page.incident():
        page.trigger("2")
    until(lambda: page.find(".answer .label"), "a decision")
    size_px = page.browser.execute_script(
        "return parseFloat(getComputedStyle(document.querySelector('.label')).fontSize)"
    )
    assert size_px >= 48  # 13 mm on a screen of 24 inches: 15 minutes of arc at three metres
    for theme in ("light", "dark"):
        colours = page.browser.execute_script(
            "document.documentElement.dataset.theme = arguments[0];"
            "const names = ['--ink', '--soft', '--warn', '--bad', '--accent'];"
            "const style = getComputedStyle(document.documentElement);"
            "return [...names, '--panel'].map((name) => style.getPropertyValue(name).trim())",
            theme,
        )
        *inks, panel = colours
        assert min(_contrast(ink, panel) for ink in inks) >= 4.5, (theme, colours)
    page.browser.execute_script("delete document.documentElement.dataset.theme")


def test_nothing_went_wrong_in_the_browser(page: Page, console: Any) -> None:
    problems = [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [p for p in problems if console.address in p["message"]] == []


def test_kill_9_loses_no_decision_that_was_shown_and_the_page_goes_on_with_its_history(
    browser: Any, start_console: Any, camera_flags: list[str], unsure_server: Any, until_ready: Any, tmp_path: Path
) -> None:
    port, audit = _free_port(), tmp_path / "audit"
    shown: dict[tuple[str, int], int] = {}

    def watch(url: str) -> None:
        with contextlib.suppress(httpx.HTTPError), httpx.stream("GET", f"{url}/api/events", timeout=20) as stream:
            for line in stream.iter_lines():
                document = json.loads(line[6:]) if line.startswith("data: {") else {}
                shown.update({(document["id"], r["revision"]): r["line"] for r in document.get("rulings", [])})

    flags = [*camera_flags, "--server", unsure_server.grpc]
    with start_console(*flags, audit=audit, port=port) as first:
        until_ready(first)
        page = Page(browser, first)
        watcher = threading.Thread(target=watch, args=(first.url,))
        watcher.start()
        page.trigger("2")
        page.until_used("main", "left", "right")
        while len(shown) < 6:
            first.post("/api/trigger", {"seconds_ago": 1.2})
        first.process.send_signal(signal.SIGKILL)
        watcher.join()
        until(lambda: "trying again" in page.text("#link"), "the page says that it lost the console")
    with start_console(*flags, audit=audit, port=port) as second:
        known = {(i["id"], r["revision"]): r["line"] for i in second.state()["incidents"] for r in i["rulings"]}
        assert known.items() >= shown.items()
        assert all(shown.values())
        page.until_connected()
        until(lambda: "from the audit log" in page.text("#history"), "the history")
        # Its clips are kept: it can be asked again.
        answers = len(page.find(".revisions button"))
        page.press("a")
        until(lambda: len(page.find(".revisions button")) > answers, "another answer")
        page.press("]")
        until(lambda: "cannot be moved" in page.text("#notices"), "its pictures are gone from the buffers")
    assert verify(audit).faults == ()


def test_a_server_that_restarts_is_told_of_and_asked_again(page: Page, unsure_server: Any) -> None:
    page.trigger("2")
    page.until_used("main", "left", "right")
    unsure_server.stop()
    page.trigger("2")
    until(lambda: "not available" in page.text("#notices"), "the page says that the server is away")
    until(lambda: "Asking again" in page.text("#decision"), "and that it is asked again")
    unsure_server.start()
    page.until_used("main", "left", "right")
    until(lambda: "not available" not in page.text("#notices"), "the notice goes")
    # The server forgot its sessions: an older incident is sent whole again.
    page.press("j")
    answers = len(page.find(".revisions button"))
    page.press("a")
    until(lambda: len(page.find(".revisions button")) > answers, "an older incident is answered again")


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
