"""The work of `python -m training.evaluate`: answers for every action of a split, and what they are worth.

    metrics.json                          every figure
    predictions_<split>.json              SoccerNet's format
    confusion_action.png, confusion_offence_severity.png
    reliability.png                       confidence against accuracy
    report.html                           all of it to look at, in one file; written last

Each view is encoded once. Its features are scored together with those of the other views of its action, and alone: the
difference is what several cameras bring.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvfoul.artifact import write_json
from mvfoul.errors import ConfigError
from mvfoul.labels import VOCABULARIES
from training.assembly import build_loader, choose_device
from training.checkpoint import Checkpoint, load_network
from training.console import RunConsole
from training.dataset import MultiViewDataset
from training.evaluate import EvaluateConfig
from training.evaluation.answers import Answers, Augmentation, answer_all
from training.evaluation.figures import metrics_json, table
from training.evaluation.judge import Evaluation, judge
from training.evaluation.report import write_report
from training.model.network import FoulNetwork
from training.plots import plot_confusion, plot_reliability


def evaluate_checkpoint(config: EvaluateConfig) -> Evaluation:
    """Evaluate, print a table, and write the files.

    Raises:
        MVFoulError: The checkpoint, the data or a flag is unusable.
    """
    console = RunConsole()
    device = choose_device(config.device)
    network, checkpoint = load_network(config.ckpt, device)
    num_views = config.num_views or checkpoint.clip.max_views
    if num_views > checkpoint.clip.max_views:
        raise ConfigError(f"--num-views is {num_views}; {config.ckpt} takes {checkpoint.clip.max_views} at most.")
    dataset = MultiViewDataset(config.root, config.split, num_views=num_views, clip=checkpoint.clip)
    if checkpoint.config.get("data", {}).get("replay_aware"):
        dataset.clips.rule = replace(dataset.clips.rule, replay_aware=True)
        console.say(
            "note: trained with --data.replay-aware, so slowed replays are spread by their annotated speed here too; "
            "a server knows no replay speed, and these figures do not hold for it"
        )
    answers = answer_split(
        network,
        dataset,
        console,
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        augmentation=config.tta,
    )
    evaluation = judge(
        answers, dataset, temperatures=checkpoint.temperatures, resamples=config.resamples, seed=config.seed
    )
    output = config.output or config.ckpt.parent / f"evaluation_{dataset.split}"
    _write(evaluation, output, config, metrics_json(evaluation, config, checkpoint), dataset)
    for line in report_lines(evaluation, config, checkpoint, output):
        console.say(line)
    return evaluation


def answer_split(
    network: FoulNetwork,
    dataset: MultiViewDataset,
    console: RunConsole,
    *,
    batch_size: int,
    workers: int | None,
    device: torch.device,
    augmentation: Augmentation = "none",
) -> Answers:
    """Ask about every action of a split, with a bar."""
    dataset.random_views = False
    loader = build_loader(dataset, batch_size=batch_size, workers=workers, device=device)
    with console.bar(f"evaluating {dataset.split}", len(dataset)) as bar:
        return answer_all(
            network,
            loader,
            lambda batch: bar.advance(bar.task_ids[0], len(batch) + len(batch.left_out)),
            augmentation=augmentation,
        )


def report_lines(evaluation: Evaluation, config: EvaluateConfig, checkpoint: Checkpoint, output: Path) -> list[str]:
    """Return the lines that the command prints."""
    answers = evaluation.answers
    flipped = ", mean of the logits with those of the mirrored views" if config.tta == "flip" else ""
    lines = [
        f"{evaluation.split}: {len(answers.action_ids)} actions, {answers.views} views; "
        f"{checkpoint.backbone} + {checkpoint.aggregation}, epoch {checkpoint.epoch} of {config.ckpt}{flipped}",
    ]
    if answers.skipped:
        lines.append(f"clips skipped: {len(answers.skipped)}; the first: {answers.skipped[0]}")
    if answers.left_out:
        lines.append(f"no prediction, for want of a usable clip: actions {', '.join(answers.left_out)}")
    lines += table(evaluation) if evaluation.labelled else ["no labels in this split: predictions only"]
    lines += ["", f"written to {output}: {', '.join(_files(evaluation))}"]
    return [*lines, "", "Next:", f"  python -m export --ckpt {shlex.quote(str(config.ckpt))}"]


def _files(evaluation: Evaluation) -> list[str]:
    names = ["metrics.json", f"predictions_{evaluation.split}.json"]
    if not evaluation.labelled:
        return names
    return [*names, *(f"confusion_{head}.png" for head in VOCABULARIES), "reliability.png", "report.html"]


def _write(
    evaluation: Evaluation,
    output: Path,
    config: EvaluateConfig,
    metrics: Mapping[str, Any],
    dataset: MultiViewDataset,
) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / f"predictions_{evaluation.split}.json", evaluation.document)
        write_json(output / "metrics.json", metrics)
        if evaluation.labelled:
            _draw(evaluation, output)
            write_report(output / "report.html", evaluation, metrics, dataset, config)
    except OSError as error:
        raise ConfigError(f"cannot write to {output}: {error}. Choose another --output.") from error


def _draw(evaluation: Evaluation, output: Path) -> None:
    for head, confusion in evaluation.answers.confusions().items():
        recall = 100 * evaluation.plain.heads[head].balanced_accuracy
        title = f"{evaluation.split}: balanced accuracy {recall:.1f} %"
        plot_confusion(output / f"confusion_{head}.png", confusion, head, title=title)
    title = f"{evaluation.split}: {len(evaluation.answers.action_ids)} actions"
    plot_reliability(output / "reliability.png", evaluation.calibration(), title=title)
