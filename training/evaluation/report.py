"""An evaluation to look at: one HTML file with its pictures inside, so that it can be sent to somebody."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
from matplotlib.image import imsave

from mvfoul.labels import VOCABULARIES
from training.dataset import MultiViewDataset
from training.evaluate import EvaluateConfig
from training.evaluation.figures import notes
from training.evaluation.judge import Evaluation, Mistake

MOST_MISTAKES: Final = 20
_MOST_PICTURED: Final = 8


def write_report(
    path: Path, evaluation: Evaluation, metrics: Mapping[str, Any], dataset: MultiViewDataset, config: EvaluateConfig
) -> None:
    """Write the report; the pictures lie beside it already.

    Args:
        path: The HTML file.
        evaluation: Of a labelled split.
        metrics: As in metrics.json.
        dataset: Of the split, for pictures of the worst mistakes.
        config: What was asked for.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training.evaluation", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = _percent
    mistakes = evaluation.mistakes(MOST_MISTAKES)
    text = environment.get_template("report.html.j2").render(
        metrics=metrics,
        heads=list(VOCABULARIES),
        pictures={file.stem: _png(file.read_bytes()) for file in sorted(path.parent.glob("*.png"))},
        notes=[note for note in notes(evaluation) if note],
        mistakes=mistakes,
        stills=_stills(mistakes, dataset),
        dropped=dataset.annotations.dropped_table(),
        issues=dataset.annotations.clip_issues,
        settings=vars(config),
    )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _stills(mistakes: list[Mistake], dataset: MultiViewDataset) -> dict[str, list[str]]:
    """Return the middle frame of each view of the first few actions, by action id."""
    positions = {record.action_id: index for index, record in enumerate(dataset.records)}
    wanted = list(dict.fromkeys(mistake.action_id for mistake in mistakes))[:_MOST_PICTURED]
    stills = {}
    for action_id in wanted:
        views = dataset[positions[action_id]].views  # [V, 3, T, H, W]
        frames = views[:, :, views.shape[2] // 2].permute(0, 2, 3, 1).numpy()
        stills[action_id] = [_png(_encoded(frame)) for frame in frames]
    return stills


def _encoded(frame: Any) -> bytes:
    file = io.BytesIO()
    imsave(file, frame, format="png")
    return file.getvalue()


def _png(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
