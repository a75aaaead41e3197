"""A real Prometheus scrapes the real processes under load: every query of panels and rules has data, in its unit."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

import promql_parser as promql
import pytest
import yaml

from mvfoul.labels import VOCABULARIES
from mvfoul.population import count_answers
from scripts.monitoring.__main__ import FOLDER
from scripts.monitoring.dashboards import DASHBOARDS
from scripts.monitoring.load import actions_in, burst, steady_load
from scripts.monitoring.page import browse, served_page
from scripts.monitoring.prometheus import Prometheus, run_prometheus
from scripts.monitoring.queries import SELF_TEST_P95
from scripts.monitoring.stack import Stack, run_stack
from tests.k8s.promql_units import COMPARISONS, metrics_of, parse
from tests.k8s.test_dashboards import RECORDS, RULES

NAMESPACE = "mvfoul"
"""That of the autoscalers' queries."""
WINDOW = "30s"
PATIENCE_S = 150
"""On a busy machine; on an idle one everything is there after 10 s."""
BOUNDS = {
    "s": (0, 3600),
    "bytes": (0, 1 << 40),
    "percentunit": (0, 1.1),  # a rate over few samples overshoots
    "reqps": (0, 1000),
    "cps": (0, 10_000),
    "short": (0, 1e6),
    "none": (0, 1),
}


@dataclass(frozen=True)
class Observed:
    """What was asked while everything ran."""

    prometheus: Prometheus
    stack: Stack
    values: dict[str, list[float]]
    """By expression; no numbers left out."""

    def absent(self, expr: str) -> bool:
        """Whether it asks for what cannot be here: of a Triton that is not installed."""
        return not self.stack.has_triton and any(name.startswith("nv_inference") for name in _raw_metrics(expr))


def panel_queries():
    return [
        pytest.param(query.expr, query.unit, id=f"{panel.title}: {query.legend}")
        for board in DASHBOARDS
        for row in board.rows
        for panel in row.panels
        for query in panel.queries
    ]


def compared_in(rule) -> list[str]:
    """What a rule asks for: a record's expression; an alert's sides left of a comparison, which have data always."""
    if "record" in rule:
        return [rule["expr"]]
    found: list[str] = []

    def visit(node):
        if isinstance(node, promql.BinaryExpr) and str(node.op) in COMPARISONS:
            found.append(node.lhs.prettify())
        return True

    promql.walk(parse(rule["expr"]), pre_visit=visit)
    return found


def _raw_metrics(expr: str) -> set[str]:
    """Metrics that processes expose; recorded names are followed."""
    names = metrics_of(expr)
    return {raw for name in names for raw in (_raw_metrics(RECORDS[name]) if name in RECORDS else {name})}


def _resolved(expr: str) -> str:
    return expr.replace("$namespace", NAMESPACE).replace("$__rate_interval", WINDOW)


def scaling_queries():
    documents = yaml.safe_load_all((FOLDER.parents[1] / "base" / "autoscaling.yaml").read_text())
    triggers = [trigger for document in documents for trigger in document["spec"].get("triggers", [])]
    return [trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"]


ALL = [query.values[0] for query in panel_queries()] + [expr for rule in RULES for expr in compared_in(rule)]
ALL += scaling_queries()
IDLE = [SELF_TEST_P95.expr]
"""Where requests prove that a server works, no self-test runs."""


@pytest.fixture(scope="module")
def evaluated_artifact(tiny_artifact, tmp_path_factory):
    """The tiny artifact as if 400 actions had been evaluated, all labels equally often: what drift is measured from."""
    copy = tmp_path_factory.mktemp("evaluated") / "artifact"
    shutil.copytree(tiny_artifact, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["evaluation"]["answers"] = {
        head: count_answers(
            [number % len(names) for number in range(400)], [0.5] * 400, len(names), manifest["temperatures"][head]
        ).to_json()
        for head, names in VOCABULARIES.items()
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.fixture(scope="module")
def observed(evaluated_artifact, tmp_path_factory):
    """Everything under load until every query has had a number, and the numbers."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed; scripts/debian-packages.sh installs it on Debian")
    folder = tmp_path_factory.mktemp("monitoring")
    data = ("--out", str(folder / "data"), "--recipe", "demo", "--actions", "24", "--workers", "1")
    subprocess.run([sys.executable, "-m", "training.synthetic", *data], check=True, capture_output=True)
    actions = actions_in(folder / "data")
    with (
        run_stack(evaluated_artifact, folder / "data", folder / "stack") as stack,
        run_prometheus(stack.targets, folder / "prometheus", namespace=NAMESPACE) as prometheus,
    ):
        seen = Observed(prometheus, stack, {})
        _ask_until_all_have_data(seen, IDLE)
        with steady_load(stack, actions, pause_s=0.1):
            burst(stack.http[0], actions[0], requests=20)
            _ask_until_all_have_data(seen, [expr for expr in ALL if expr not in IDLE])
            yield seen


def _ask_until_all_have_data(seen: Observed, exprs: list[str]) -> None:
    missing = [expr for expr in exprs if not seen.absent(expr)]
    deadline = time.monotonic() + PATIENCE_S
    while missing and time.monotonic() < deadline:
        for expr in missing:
            values = [series.value for series in seen.prometheus.query(_resolved(expr))]
            seen.values[expr] = [value for value in values if math.isfinite(value)]
        missing = [expr for expr in missing if not seen.values[expr]]
        time.sleep(0.5)


@pytest.mark.timeout(600)
def test_the_processes_start_and_are_scraped(observed):
    # On a busy machine a single scrape can take longer than its second.
    scraped = {series.labels["pod"] for series in observed.prometheus.query("max_over_time(up[10m]) == 1")}
    assert scraped == {target.pod for target in observed.stack.targets}


def test_no_query_asks_for_a_metric_that_does_not_exist(observed):
    asked = {name for expr in ALL if not observed.absent(expr) for name in _raw_metrics(expr)}
    assert sorted(asked - observed.prometheus.metric_names()) == []


@pytest.mark.parametrize(("expr", "unit"), panel_queries())
def test_a_panels_query_has_data_in_its_unit(observed, expr, unit):
    if observed.absent(expr):
        pytest.skip("asks Triton, which is not installed; scripts/triton.sh installs it")
    low, high = BOUNDS[unit]
    assert observed.values[expr], f"no data: {_resolved(expr)}"
    assert all(low <= value <= high for value in observed.values[expr]), (unit, observed.values[expr])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rules_query_has_data(observed, rule):
    for expr in compared_in(rule):
        if observed.absent(expr):
            pytest.skip("asks Triton, which is not installed; scripts/triton.sh installs it")
        assert observed.values[expr], f"no data: {expr}"


@pytest.mark.parametrize("expr", scaling_queries())
def test_an_autoscalers_query_has_data(observed, expr):
    if observed.absent(expr):
        pytest.skip("asks Triton, which is not installed; scripts/triton.sh installs it")
    assert observed.values[expr], f"no data: {expr}"


def test_prometheus_evaluates_every_rule(observed):
    groups = observed.prometheus.rules()
    assert sum(len(group["rules"]) for group in groups) == len(RULES)
    assert not [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]


def test_rates_are_taken_of_counters_and_quantiles_of_histograms(observed):
    kinds = observed.prometheus.kinds()
    wrong = []

    def visit(node):
        if isinstance(node, promql.Call) and node.func.name in {"rate", "increase", "histogram_quantile"}:
            wanted = {"histogram"} if node.func.name == "histogram_quantile" else {"counter", "histogram"}
            for name in metrics_of(node.prettify()):
                kind = kinds.get(name) or kinds.get(name.rsplit("_", 1)[0])
                if kind not in wanted:
                    wrong.append(f"{node.func.name}({name}): a {kind}")
        return True

    for expr in ALL:
        if not observed.absent(expr):
            promql.walk(parse(expr), pre_visit=visit)
    assert not wrong


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_the_page_draws_every_panel_of_a_dashboard(observed, board):
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed; scripts/debian-packages.sh installs it on Debian")
    panels = [panel for row in board.rows for panel in row.panels]
    without = [panel.title for panel in panels if all(observed.absent(query.expr) for query in panel.queries)]
    name = board.uid.removeprefix("mvfoul-")
    with served_page(observed.prometheus.url, port=0, scrape_s=1) as page:
        shown = browse(f"{page}?dashboard={name}&minutes=15&window=30&still", "--dump-dom")
    assert f"{len(panels) - len(without)} of {len(panels)} panels have data" in _text_of(shown), without


def _text_of(html: str) -> str:
    return html[html.index("<output") : html.index("</output>")]
