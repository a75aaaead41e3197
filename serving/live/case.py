"""One incident as a zip that needs nothing else: the clips, every decision as JSON, and a report to read or print."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

from serving.live.incident import Incident, Ruling, View, free_name
from serving.live.stills import stills

DISCLAIMER: Final = "The referee decides. This is what a model computed from the clips, and no official decision."

_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.2rem .8rem .2rem 0;text-align:left}
.big{font-size:1.5rem;font-weight:700}.rule{border-left:.4rem solid #b45309;padding:.3rem .8rem;background:#fef3c7}
img{width:32%;aspect-ratio:16/9;object-fit:fill;margin-right:1%}code{overflow-wrap:anywhere}
"""


def case_zip(incident: Incident, *, truth: Mapping[str, str] | None = None) -> bytes:
    """Return the zip.

    Args:
        incident: With the clips that are still in memory or kept; what is gone is named by its hash.
        truth: Action class and offence severity as annotated, in review.
    """
    files = _file_names(incident)
    document = {**incident.to_json(), "files": files, "truth": dict(truth or {}), "disclaimer": DISCLAIMER}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, file in files.items():
            archive.writestr(file, incident.views[name].data)
        archive.writestr("decision.json", json.dumps(document, indent=2))
        archive.writestr("report.html", report_html(incident, truth=truth))
    return out.getvalue()


def _file_names(incident: Incident) -> dict[str, str]:
    """Return a file for each view that has a clip, none twice: not even where `Left` and `left` are one file."""
    taken: set[str] = set()
    files: dict[str, str] = {}
    for view in incident.views.values():
        if view.data:
            stem = view.name.removesuffix(".mp4")
            unique = free_name(stem.lower(), taken)
            taken.add(unique)
            files[view.name] = f"clips/{stem}{unique.removeprefix(stem.lower())}.mp4"
    return files


def report_html(incident: Incident, *, truth: Mapping[str, str] | None = None) -> str:
    """Return the report as one HTML page without references to anything outside it."""
    body = [
        f"<h1>Incident {escape(incident.id)}</h1>",
        f'<p class="rule">{DISCLAIMER}</p>',
        _facts(incident),
        *([_truth(truth)] if truth else []),
        *(_ruling(ruling) for ruling in reversed(incident.rulings)),
        "<h2>Views</h2>",
        *(_view(view) for view in incident.views.values()),
    ]
    title = f"<title>Incident {escape(incident.id)}</title>"
    return f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{_STYLE}</style>{"".join(body)}</html>'


def _facts(incident: Incident) -> str:
    rows = [
        ("contact", _utc(incident.contact_s)),
        ("triggered", f"{_utc(incident.triggered_at_s)} by {incident.trigger}, {incident.operator}"),
        ("note", incident.note),
        *((_utc(a["at_s"]), _action(a)) for a in incident.actions),
    ]
    return _table((escape(k), escape(v)) for k, v in rows if v)


def _action(action: Mapping[str, Any]) -> str:
    by = action.get("by")  # lines of older logs do not say
    return f"{action['action']} {action['detail']}".strip() + (f", by {by}" if by else "")


def _truth(truth: Mapping[str, str]) -> str:
    return "<h2>Annotated</h2>" + _table((escape(k), escape(v)) for k, v in truth.items())


def _ruling(ruling: Ruling) -> str:
    document = ruling.document
    rows = [_head("action class", document["action"]), _head("offence severity", document["offence_severity"])]
    weights = ", ".join(f"{n} {w:.2f}" for n, w in zip(ruling.views, document["view_weights"], strict=True))
    stages = ", ".join(f"{stage} {1000 * s:.0f} ms" for stage, s in ruling.stages_s.items())
    recorded = f"line {ruling.line} of the audit log" if ruling.line else "NOT in the audit log"
    small = [
        ("view weights", weights),
        ("latency", stages),
        ("artifact", f"{document['artifact']}, request {document['id']}"),
        ("decided", f"{_utc(ruling.at_s)}; {recorded}"),
    ]
    return f"<h2>Decision {ruling.revision}</h2>" + _table([*rows, *((k, escape(v)) for k, v in small)])


def _head(title: str, head: Mapping[str, Any]) -> tuple[str, str]:
    first, second = (f"{escape(c['label'])} {100 * c['probability']:.0f} %" for c in head["top2"])
    shown = "no decision (too unsure)" if head["abstain"] else first
    others = f"{first}, {second}" if head["abstain"] else second
    return title, f'<span class="big">{shown}</span> <br>then {others}'


def _view(view: View) -> str:
    images = "".join(
        f'<img alt="{escape(view.name)}" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
        for picture in (stills(view.data) if view.data else [])
    )
    reason = f": {escape(view.reason)}" if view.reason else ""
    title = f"<b>{escape(view.name)}</b> ({view.source}, {view.state}{reason})"
    return f"<p>{title}<br>{images}<br><code>sha256 {view.sha256}</code></p>"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows) + "</table>"


def _utc(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s)) + f".{int(at_s * 100) % 100:02d} UTC"
