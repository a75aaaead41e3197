"""What the console knows of one incident: its views, its decisions, and what the operator did. Plain data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, count
from typing import Any, Literal

Trigger = Literal["operator", "http", "timecode", "continuous", "review"]
Source = Literal["camera", "replay", "file"]
ViewState = Literal["waiting", "ready", "used", "masked", "refused", "dropped"]
"""waiting for its camera; ready to be sent; used by the latest decision; masked: its camera had no picture; refused by
the server; dropped by the operator."""
State = Literal["waiting", "asking", "decided", "failed"]


@dataclass
class View:
    """One look at the incident."""

    name: str
    source: Source
    state: ViewState = "waiting"
    reason: str = ""
    """Why it is masked, refused or dropped."""
    data: bytes = field(default=b"", repr=False)
    sha256: str = ""
    kept: bool = False
    """Whether the clip is on disk."""
    wait_s: float = 0.0
    """Until the camera's buffer reached past the window."""
    cut_s: float = 0.0
    ready_at_s: float = 0.0
    """On the monotonic clock."""

    def to_json(self) -> dict[str, Any]:
        """Return what the page and the log get."""
        keys = ("name", "source", "state", "reason", "sha256", "kept")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class Ruling:
    """One answer of the server on an incident; a later one refines it."""

    revision: int
    """Counted from 1."""
    at_s: float
    views: tuple[str, ...]
    """Names, in the order of the weights."""
    document: Mapping[str, Any]
    """The server's `DECISION`."""
    probabilities: Mapping[str, tuple[float, ...]]
    stages_s: Mapping[str, float]
    """wait, cut, request, audit, total: of the view that this answer waited for last."""
    line: int = 0
    """Of the audit log; 0 if it could not be written."""

    def to_json(self) -> dict[str, Any]:
        """Return what the page gets."""
        return asdict(self)


@dataclass
class Incident:
    """One incident and all that was decided on it."""

    id: str
    trigger: Trigger
    operator: str
    triggered_at_s: float
    """UNIX seconds, as all instants here."""
    contact_s: float
    note: str = ""
    shift_frames: int = 0
    """By how much the operator moved the contact, at 25 fps."""
    state: State = "waiting"
    message: str = ""
    """Why there is no decision yet, or none any more."""
    views: dict[str, View] = field(default_factory=dict)
    rulings: list[Ruling] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)
    """What the operator did: at_s, action, detail, by whom."""
    restored: bool = False
    """Read from the audit log after a restart: its views cannot be asked again."""

    def to_json(self) -> dict[str, Any]:
        """Return what the page gets."""
        keys = ("id", "trigger", "operator", "triggered_at_s", "contact_s", "note", "shift_frames", "state", "message")
        return {
            **{key: getattr(self, key) for key in keys},
            "restored": self.restored,
            "actions": list(self.actions),
            "views": [view.to_json() for view in self.views.values()],
            "rulings": [ruling.to_json() for ruling in self.rulings],
        }

    def of_state(self, state: ViewState) -> list[View]:
        """Return the views in one state."""
        return [view for view in self.views.values() if view.state == state]


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: itself, or with a number."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)


def audit_data(incident: Incident, ruling: Ruling, used: Sequence[View]) -> dict[str, Any]:
    """Return the line of the audit log for one decision: enough to show the incident again after a restart.

    Args:
        incident: As it is now.
        ruling: What was decided.
        used: The very views that were asked about, in the ruling's order.
    """
    document = incident.to_json()
    del document["rulings"], document["restored"]
    return {
        "incident": {**document, "state": "decided"},
        "ruling": {key: value for key, value in ruling.to_json().items() if key != "line"},
        "clips": [{"view": view.name, "sha256": view.sha256, "kept": view.kept} for view in used],
        "artifact": ruling.document["artifact"],
        "engine": ruling.document.get("engine", ""),
    }


def restored_incident(data: Mapping[str, Any], line: int, known: Incident | None) -> Incident:
    """Rebuild an incident from a line of the audit log; `known` has its earlier decisions."""
    fields = dict(data["incident"])
    views = {v["name"]: View(**v) for v in fields.pop("views")}
    ruling = Ruling(**{**data["ruling"], "views": tuple(data["ruling"]["views"]), "line": line})
    rulings = [*(known.rulings if known else []), ruling]
    return Incident(**fields, views=views, rulings=rulings, restored=True)
