"""A dashboard as Grafana 11.6 reads it, through the typed builders of Grafana's own SDK. Only this file knows them."""

from __future__ import annotations

import itertools
import json
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as d
from grafana_foundation_sdk.models import heatmap as h
from grafana_foundation_sdk.models import prometheus as p

from scripts.monitoring.dashboards import Dashboard, Panel
from scripts.monitoring.queries import Query

SOURCE = d.DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHTS = {"stat": 4, "timeseries": 8, "heatmap": 8}
_NAMES_HEIGHT = 3


def to_json(board: Dashboard) -> str:
    """Return the JSON text of a dashboard; the same input gives the same text."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["mvfoul"])
        .timezone("browser")
        .tooltip(d.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_namespaces(board.namespaces))
    )
    ids = itertools.count(1)
    for row in board.rows:
        builder = builder.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            builder = builder.with_panel(_panel(panel).id(next(ids)))
    document = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    for variable in document["templating"]["list"]:
        # The builders write the fields of an interval's variable into all; @grafana/schema refuses them elsewhere.
        for name in [name for name in variable if name.startswith("auto")]:
            del variable[name]
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _namespaces(metric: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("namespace")
        .label("Namespace")
        .datasource(SOURCE)
        .query({"query": f"label_values({metric}, namespace)", "refId": "namespaces"})
        .refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(d.VariableSort.ALPHABETICAL_ASC)
    )


def _panel(panel: Panel) -> Any:
    make = {"timeseries": _timeseries, "stat": _stat, "heatmap": _heatmap}[panel.kind]
    builder = _described(make(panel), panel)
    for index, query in enumerate(panel.queries):
        builder = builder.with_target(_target(query, chr(ord("A") + index), panel.kind))
    return builder


def _described(builder: Any, panel: Panel) -> Any:
    height = _NAMES_HEIGHT if panel.named else _HEIGHTS[panel.kind]
    described = builder.title(panel.title).datasource(SOURCE).span(panel.width).height(height)
    return described.description(panel.about) if panel.about else described


def _target(query: Query, ref_id: str, kind: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref_id).range()
    form = p.PromQueryFormat.HEATMAP if kind == "heatmap" else p.PromQueryFormat.TIME_SERIES
    return target.format(form).datasource(SOURCE)


def _timeseries(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .unit(panel.unit)
        .min(0)
        .line_width(1)
        .fill_opacity(_opacity(panel))
        .show_points(c.VisibilityMode.NEVER)
        .span_nulls(False)
        .legend(common.VizLegendOptions().show_legend(True).placement(c.LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI).sort(c.SortOrder.DESCENDING))
    )
    if panel.stacked:
        built = built.stacking(common.StackingConfig().mode(c.StackingMode.NORMAL))
    if panel.limit is not None:
        line = common.GraphThresholdsStyleConfig().mode(c.GraphThresholdsStyleMode.DASHED)
        built = built.thresholds(_thresholds(panel)).thresholds_style(line)
    return built


def _opacity(panel: Panel) -> int:
    """In percent. Areas that lie over each other would be grey: only a single line has one."""
    if panel.stacked:
        return 60
    return 10 if len(panel.queries) == 1 and "{{" not in panel.queries[0].legend else 0


def _stat(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .unit(panel.unit)
        .thresholds(_thresholds(panel))
        .color_mode(c.BigValueColorMode.NONE if panel.named else c.BigValueColorMode.VALUE)
        .graph_mode(c.BigValueGraphMode.NONE if panel.named else c.BigValueGraphMode.AREA)
        .text_mode(c.BigValueTextMode.NAME if panel.named else c.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )


def _heatmap(panel: Panel) -> heatmap.Panel:
    colours = heatmap.HeatmapColorOptions().mode(h.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    # The cells have the queries' unit; the axis is the histogram's, whose buckets are seconds.
    return (
        heatmap.Panel()
        .calculate(False)
        .color(colours)
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .cell_values(heatmap.CellValues().unit(panel.unit))
        .unit(panel.unit)
    )


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [d.Threshold(value=None, color="green")]
    if panel.limit is not None:
        steps = [d.Threshold(value=None, color="green"), d.Threshold(value=panel.limit, color="red")]
    if panel.floor is not None:
        steps = [d.Threshold(value=None, color="red"), d.Threshold(value=panel.floor, color="green")]
    return dashboard.ThresholdsConfig().mode(d.ThresholdsMode.ABSOLUTE).steps(steps)
