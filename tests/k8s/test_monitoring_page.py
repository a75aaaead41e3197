"""The viewer's web server: files, dashboards, and Prometheus' answers, errors included."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from scripts.monitoring.__main__ import FOLDER
from scripts.monitoring.dashboards import DASHBOARDS
from scripts.monitoring.page import served_page

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def page():
    with served_page(NOWHERE, port=0, scrape_s=2) as address:
        yield address


def get(address):
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_it_serves_the_page_and_the_committed_dashboards(page):
    assert get(page)[:2] == (200, "text/html; charset=utf-8")
    assert get(f"{page}viewer.js")[:2] == (200, "text/javascript; charset=utf-8")
    names = json.loads(get(f"{page}dashboards")[2])
    assert names == sorted(board.uid.removeprefix("mvfoul-") for board in DASHBOARDS)
    for name in names:
        assert get(f"{page}dashboards/{name}.json")[2] == (FOLDER / f"{name}.json").read_text()
    assert json.loads(get(f"{page}settings")[2]) == {"scrape_interval_s": 2}


@pytest.mark.parametrize("path", ["nothing.js", "dashboards/none.json", "dashboards/../rules.yaml", "..%2fqueries.py"])
def test_it_serves_nothing_else(page, path):
    assert get(page + path)[0] == 404


def test_it_says_so_when_prometheus_does_not_answer(page):
    status, kind, text = get(f"{page}api/v1/query?query=up")
    assert (status, kind) == (502, "application/json; charset=utf-8")
    assert "Prometheus does not answer" in json.loads(text)["error"]
