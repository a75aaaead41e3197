"""The work of `python -m training.calibrate`: temperatures fitted to a split, in a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from mvfoul.errors import ConfigError
from mvfoul.labels import VOCABULARIES, Head
from training.assembly import choose_device
from training.calibrate import CalibrateConfig
from training.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Reliability, fit_temperature, reliability
from training.checkpoint import load_network, save_checkpoint
from training.console import RunConsole
from training.dataset import MultiViewDataset
from training.evaluation.answers import Answers
from training.evaluation.run import answer_split

_RECOMMENDED: Final = 50
_FEW_MISTAKES: Final = 5  # assumption


def calibrate_checkpoint(config: CalibrateConfig) -> dict[Head, float]:
    """Fit, print, write the checkpoint; return the temperatures.

    Raises:
        MVFoulError: The checkpoint or the data is unusable, or has too few labelled actions.
    """
    console = RunConsole()
    device = choose_device(config.device)
    network, checkpoint = load_network(config.ckpt, device)
    dataset = MultiViewDataset(config.root, config.split, num_views=checkpoint.clip.max_views, clip=checkpoint.clip)
    answers = answer_split(
        network, dataset, console, batch_size=config.batch_size, workers=config.workers, device=device
    )
    temperatures = {head: _fit(answers, head, config) for head in VOCABULARIES}
    for line in _lines(answers, temperatures, checkpoint.temperatures):
        console.say(line)
    out = config.out or config.ckpt
    # The confidences that the checkpoint's evaluation counted are those of the old temperatures.
    populations = {str(head): seen.to_json() for head, seen in answers.populations(temperatures).items()}
    calibrated = replace(
        checkpoint,
        temperatures={str(head): value for head, value in temperatures.items()},
        evaluation={**checkpoint.evaluation, "answers": populations},
    )
    save_checkpoint(out, calibrated)
    console.say(f"\nwritten to {out}\n\nNext:")
    console.say(
        f"  python -m training.evaluate --ckpt {shlex.quote(str(out))} --data.root {shlex.quote(str(config.root))}"
    )
    console.say(f"  python -m export --ckpt {shlex.quote(str(out))}")
    return temperatures


def _fit(answers: Answers, head: Head, config: CalibrateConfig) -> float:
    labelled = answers.labels(head) >= 0
    count = int(labelled.sum())
    if count < config.min_actions:
        raise ConfigError(
            f"--split {config.split} of {config.root} has {count} labelled actions that can be decoded; a temperature "
            f"needs --min-actions {config.min_actions}, or it would fit their accidents. Use another split; or a lower "
            "--min-actions, and do not trust the result."
        )
    found = fit_temperature(answers.logits(head)[labelled], answers.labels(head)[labelled])
    # measured: on the demo, whose valid split has no mistake, the lowest temperature made the NLL of test 4.7 times
    # as high.
    return 1.0 if found in (MIN_TEMPERATURE, MAX_TEMPERATURE) else found


def _lines(answers: Answers, temperatures: Mapping[Head, float], old: Mapping[str, float]) -> list[str]:
    labelled = answers.labels("action") >= 0
    count = int(labelled.sum())
    lines = [f"{count} actions", f"{'':17} {'temperature':>12} {'ECE %':>15} {'NLL':>17}"]
    for head, temperature in temperatures.items():
        logits, labels = answers.logits(head)[labelled], answers.labels(head)[labelled]
        lines.append(_row(head, temperature, reliability(logits, labels), reliability(logits, labels, temperature)))
        lines += _doubts(head, temperature, int((logits.argmax(axis=1) != labels).sum()))
    if count < _RECOMMENDED:
        lines.append(f"note: {count} actions are few; the temperatures are rough.")
    if any(value != 1.0 for value in old.values()):
        lines.append(f"note: the checkpoint had temperatures already ({dict(old)}); they are replaced.")
    return lines


def _doubts(head: Head, temperature: float, mistakes: int) -> list[str]:
    """Say where the temperature is not to be trusted."""
    if temperature == 1.0:
        return [
            f"note: {head} keeps the temperature 1: with {mistakes} mistakes here, the likelihood has no maximum from "
            f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE}. Fit it to more, or more difficult, actions."
        ]
    if mistakes < _FEW_MISTAKES:
        return [f"note: the temperature of {head} rests on {mistakes} mistakes; it is rough."]
    return []


def _row(head: Head, temperature: float, before: Reliability, after: Reliability) -> str:
    ece = f"{100 * before.ece:5.1f} -> {100 * after.ece:5.1f}"
    return f"{head:17} {temperature:12.3f} {ece:>15} {before.nll:8.4f} -> {after.nll:.4f}"
