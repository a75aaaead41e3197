"""What `benchmarks/live.py` makes of its figures; the measuring itself takes too long here."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(("total_s", "code", "says"), [(1.2, 0, "under 1 s: met"), (1.8, 1, "under 1 s: MISSED")])
def test_the_exit_code_says_whether_the_goal_is_met(
    total_s: float,
    code: int,
    says: str,
    repo_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    monkeypatch.delitem(sys.modules, "live", raising=False)
    benchmark: Any = importlib.import_module("live")
    monkeypatch.delitem(sys.modules, "live")
    stages = {"wait": 0.15, "total": total_s}
    row = {"first": stages, "all views": {**stages, "less model": total_s - 0.5}}

    options = Namespace(artifact=Path("artifact"), triggers=3, protocol="http", size=(64, 36), json=None)
    assert benchmark._report(options, [row, row]) == code
    assert says in capsys.readouterr().out
