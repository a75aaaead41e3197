"""The alerts fire when they should and not before (promtool's unit tests); each has its place in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

MONITORING = Path(__file__).resolve().parents[2] / "k8s" / "monitoring"
GROUPS = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
CASES = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())
WHICH = ("fires", "silent")
_PLACEHOLDER = re.compile(r"{{ \$(?:labels\.(?P<label>\w+)|value)(?: \| \w+)? }}")


@pytest.fixture(scope="module")
def promtool(tmp_path_factory):
    """`promtool("check", "rules", "rules.yaml")`, in a folder with the rules as Prometheus reads them."""
    program = shutil.which("promtool")
    if not program:
        pytest.skip("promtool is not installed; scripts/debian-packages.sh installs it on Debian")
    folder = tmp_path_factory.mktemp("promtool")
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": GROUPS}))
    for every in {case.get("every", "1m") for case in CASES}:
        (folder / f"every-{every}.yaml").write_text(yaml.safe_dump(_promtool_tests(every)))

    def run(*arguments):
        files = sorted(path.name for path in folder.glob("every-*")) if arguments[0] == "test" else []
        done = subprocess.run([program, *arguments, *files], cwd=folder, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def _promtool_tests(every):
    tests = [_test(case, which, every) for case in CASES if case.get("every", "1m") == every for which in WHICH]
    order = [group["name"] for group in GROUPS]  # without it promtool takes any order, another one each time
    return {"rule_files": ["rules.yaml"], "evaluation_interval": every, "group_eval_order": order, "tests": tests}


def _test(case, which, every):
    how, name = case[which], case["alert"]
    alerts = [_expected(ALERTS[name], how)] if which == "fires" else []
    found = dict(how["series"])
    if "namespace" in how.get("labels", {}) and which == "fires":
        assert case["silent"]["at"] == how["at"], name
        found |= {_elsewhere(series): text for series, text in case["silent"]["series"].items()}
    return {
        "interval": every,
        "input_series": [{"series": series, "values": _values(text)} for series, text in found.items()],
        "alert_rule_test": [{"eval_time": how["at"], "alertname": name, "exp_alerts": alerts}],
    }


def _elsewhere(series):
    moved = series.replace('namespace="fouls"', 'namespace="quiet"')
    assert moved != series
    return moved


def _values(text):
    # promtool's notation repeats numbers only.
    return re.sub(r"NaNx(\d+)", lambda found: " ".join(["NaN"] * int(found[1])), str(text))


def _expected(rule, how):
    labels = how.get("labels", {})
    shown = {**labels, **how.get("shows", {})}

    def fill(found):
        return str(shown[found["label"]] if found["label"] else how["value"])

    return {
        "exp_labels": {**labels, **rule["labels"]},
        "exp_annotations": {name: _PLACEHOLDER.sub(fill, text) for name, text in rule["annotations"].items()},
    }


def test_promtool_accepts_the_rules(promtool):
    code, said = promtool("check", "rules", "rules.yaml")
    assert code == 0, said
    assert f"{len(RULES)} rules found" in said


def test_every_alert_fires_and_stays_silent_when_it_should(promtool):
    code, said = promtool("test", "rules")
    assert code == 0, said


def test_no_alert_goes_untested():
    assert {case["alert"] for case in CASES} == set(ALERTS)


def test_every_alert_says_how_bad_it_is_and_links_to_its_entry_in_the_runbook():
    headings = re.findall(r"^## (\w+)$", (MONITORING / "runbook.md").read_text(), re.MULTILINE)
    assert headings == list(ALERTS), "one entry for each alert, in the order of the rules"
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["runbook_url"].endswith(f"runbook.md#{name.lower()}")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


def test_every_entry_of_the_runbook_says_what_it_means_how_to_look_and_what_cures():
    entries = re.split(r"^## \w+$", (MONITORING / "runbook.md").read_text(), flags=re.MULTILINE)[1:]
    for name, entry in zip(ALERTS, entries, strict=True):
        for part in ("**Means.**", "**Impact.**", "**Look.**", "**Cure.**"):
            assert part in entry, f"{name} has no {part}"
        assert "```bash" in entry, f"{name} has no command to look with"


def test_no_two_rules_record_the_same_name():
    recorded = Counter(rule["record"] for rule in RULES if "record" in rule)
    assert set(recorded.values()) == {1}


def test_the_windows_of_an_objective_differ_by_their_length_alone():
    for objective in ("slow", "failed"):
        rules = [
            r for r in RULES if r.get("record", "").startswith(f"namespace:mvfoul_{objective}_requests:ratio_rate")
        ]
        shapes = {rule["expr"].replace(f"[{rule['record'].rpartition('ratio_rate')[2]}]", "[W]") for rule in rules}
        assert len(rules) == 7
        assert len(shapes) == 1, shapes
