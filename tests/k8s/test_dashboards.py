"""The committed dashboards are what the code writes, and each query's unit is the unit of its panel."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess

import pytest
import yaml

from scripts.monitoring.__main__ import FOLDER
from scripts.monitoring.dashboards import DASHBOARDS, Panel
from scripts.monitoring.grafana import to_json
from scripts.monitoring.queries import Query
from tests.k8s.promql_units import GRAFANA_UNITS, UnitError, metrics_of, parse, unit_of

FILES = {board.uid: FOLDER / f"{board.uid.removeprefix('mvfoul-')}.json" for board in DASHBOARDS}
GROUPS = yaml.safe_load((FOLDER.parent / "rules.yaml").read_text())["spec"]["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
RECORDS = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}


def panels(uid):
    return [panel for panel in json.loads(FILES[uid].read_text())["panels"] if panel["type"] != "row"]


QUERIES = [
    pytest.param(target["expr"], panel["fieldConfig"]["defaults"]["unit"], id=f"{panel['title']} {target['refId']}")
    for uid in FILES
    for panel in panels(uid)
    for target in panel["targets"]
]


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_the_committed_dashboard_is_what_the_code_writes(board):
    assert FILES[board.uid].read_text() == to_json(board), "run python -m scripts.monitoring"


@pytest.mark.parametrize("uid", FILES)
def test_a_dashboard_is_one_that_grafana_can_import(uid):
    board = json.loads(FILES[uid].read_text())
    assert board["uid"] == uid
    assert board["schemaVersion"] >= 39
    assert {variable["name"]: variable["type"] for variable in board["templating"]["list"]} == {
        "datasource": "datasource",
        "namespace": "query",
    }
    titles = [panel["title"] for panel in panels(uid)]
    assert len(set(titles)) == len(titles)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("uid", FILES)
def test_panels_lie_beside_each_other(uid):
    taken = set()
    for panel in json.loads(FILES[uid].read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells


@pytest.mark.parametrize(("expr", "unit"), QUERIES)
def test_a_query_has_the_unit_of_its_panel(expr, unit):
    assert unit_of(expr, RECORDS) == GRAFANA_UNITS[unit]


@pytest.mark.parametrize(("expr", "unit"), QUERIES)
def test_a_query_asks_for_the_chosen_namespace_and_names_no_pod(expr, unit):
    assert unit
    assert len(re.findall(r'namespace="\$namespace"', expr)) == expr.count("{"), expr
    assert not re.search(r"\b(pod|instance)\s*=", expr)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_compares_only_what_has_the_same_unit(rule):
    unit_of(rule["expr"], RECORDS)


@pytest.mark.parametrize("record", RECORDS)
def test_a_recorded_name_says_its_unit_and_is_used(record):
    unit = "s" if "_seconds:" in record else "percentunit"
    assert unit_of(RECORDS[record], RECORDS) == GRAFANA_UNITS[unit]
    users = [rule["expr"] for rule in RULES if "alert" in rule] + [query.values[0] for query in QUERIES]
    assert any(record in metrics_of(expr) for expr in users)


def test_a_panel_with_a_wrong_unit_is_found():
    assert unit_of("rate(mvfoul_stage_duration_seconds_sum[1m])") != GRAFANA_UNITS["s"]
    assert unit_of("sum(nv_inference_queue_duration_us)") != GRAFANA_UNITS["s"]
    assert unit_of("nv_gpu_utilization") == GRAFANA_UNITS["percentunit"]
    assert unit_of("process_resident_memory_bytes / 1e6") != GRAFANA_UNITS["bytes"]


def test_sums_of_different_units_are_refused():
    with pytest.raises(UnitError, match="process_cpu"):
        unit_of("process_resident_memory_bytes + process_cpu_seconds_total")


def test_a_panel_of_two_units_is_refused():
    panel = Panel(title="Both", queries=(Query("a_seconds", "s", ""), Query("b_bytes", "bytes", "")))
    with pytest.raises(ValueError, match="Both"):
        _ = panel.unit


def test_the_parser_finds_all_metrics_of_an_expression():
    assert metrics_of("sum(rate(a_total[5m])) / (b > 0) or c") == {"a_total", "b", "c"}
    assert parse("rate(a[$__rate_interval])")


def test_kustomize_packs_dashboards_rules_and_the_runbooks_address():
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", str(FOLDER.parent)], capture_output=True, text=True, check=True)
    made = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}
    boards = made["ConfigMap", "mvfoul-dashboards"]
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert boards["data"] == {path.name: path.read_text() for path in FILES.values()}
    address = made["ConfigMap", "mvfoul-runbook"]["data"]["url"]
    links = [
        rule["annotations"]["runbook_url"]
        for group in made["PrometheusRule", "mvfoul"]["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert all(re.fullmatch(rf"{re.escape(address)}#\w+", link) for link in links)
    assert {name for kind, name in made if kind == "PodMonitor"} == {
        "mvfoul-server",
        "mvfoul-triton",
        "mvfoul-training",
    }


def families(exprs):
    return {re.sub(r"_(bucket|sum|count)$", "", name) for expr in exprs for name in metrics_of(expr)}


def test_the_runbooks_queries_are_of_metrics_that_panels_and_rules_ask_for():
    # The live test proves that those exist.
    known = families([query.values[0] for query in QUERIES] + [rule["expr"] for rule in RULES])
    text = re.sub(r"'\$(NS|POD)'", "x", (FOLDER.parent / "runbook.md").read_text())
    asked = re.findall(r"^promql '(.+)'$", text, re.MULTILINE)
    assert len(asked) == text.count("\npromql '")
    assert families(asked) <= known


def test_the_runbooks_commands_of_ours_exist():
    text = (FOLDER.parent / "runbook.md").read_text()
    modules = set(re.findall(r"python -m ((?:training|export|serving)[\w.]*)", text))
    assert modules
    assert not [module for module in modules if importlib.util.find_spec(module) is None]
