"""What the checkpoint is worth, for the manifest and the model card: its own figures, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from export.config import ExportConfig
from mvfoul.errors import ConfigError
from training.checkpoint import Checkpoint

_KEPT: Final = (
    *("split", "actions", "views", "score", "action", "offence_severity", "intervals", "top2", "single_view"),
    "answers",  # what the server compares its own with
)
"""Of metrics.json: figures. Paths and names of clips stay out of an artifact."""


def read_evaluation(config: ExportConfig, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the evaluation to publish.

    Raises:
        ConfigError: --evaluation is no metrics.json, or one of another checkpoint.
    """
    if (path := config.evaluation) is None:
        return checkpoint.evaluation
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        facts = tuple(document[name] for name in ("backbone", "aggregation", "epoch"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--evaluation {path} is no metrics.json ({error!r}). Make one: python -m training.evaluate --ckpt "
            f"{config.ckpt} --data.root DIR"
        ) from error
    expected = (checkpoint.backbone, checkpoint.aggregation, checkpoint.epoch)
    if facts != expected:
        raise ConfigError(f"--evaluation {path} is of {facts}, and {config.ckpt} is {expected}. Evaluate this one.")
    return {name: document[name] for name in _KEPT if document.get(name) is not None}
