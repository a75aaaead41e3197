"""The work of `python -m training.synthetic`: all actions, into a folder that appears only when it is complete.

    <out>/synthetic.json                    the flags that made it, versions, counts; its presence means complete
    <out>/<split>/annotations.json
    <out>/<split>/action_<id>/clip_<k>.mp4

Everything is written to `.<name>.partial` beside `out` and renamed at the end. An interrupted run leaves only that; the
next one starts it anew.
"""

from __future__ import annotations

import json
import multiprocessing
import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mvfoul.errors import ConfigError
from mvfoul.labels import VOCABULARIES
from training.synthetic.clips import write_action
from training.synthetic.config import SyntheticConfig
from training.synthetic.plan import SPLIT_NAMES, PlannedAction, plan_actions

RECORD: Final = "synthetic.json"
_CHUNK = 4  # actions per message to a worker


@dataclass(frozen=True)
class Outcome:
    """What a call did."""

    out: Path
    kept: bool
    """True where a complete data set of the same flags was there already."""
    clips: int
    size_bytes: int
    seconds: float


def generate(config: SyntheticConfig, *, console: Console | None = None) -> Outcome:
    """Write the data set, or keep the one that is there.

    Raises:
        ConfigError: `out` holds something else; says the cure.
    """
    console = console or Console()
    started = time.monotonic()
    out = config.out.expanduser().absolute()
    actions = plan_actions(config)
    if (record := _existing(out, config)) is not None:
        outcome = Outcome(config.out, True, record["clips"], record["size_bytes"], 0.0)
    else:
        clips, size_bytes = _write(config, actions, out, console)
        outcome = Outcome(config.out, False, clips, size_bytes, time.monotonic() - started)
    _report(outcome, config, actions, console)
    return outcome


def _existing(out: Path, config: SyntheticConfig) -> dict[str, Any] | None:
    """Return the record of a complete data set of the same flags; None where there is nothing to keep."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    record = _read_record(out / RECORD)
    if record is None:
        raise ConfigError(
            f"--out {out} exists and is not a synthetic data set (it has no {RECORD}); it is never replaced. "
            "Name another folder."
        )
    if config.overwrite:
        return None
    wanted, cure = config.identity(), "Give those flags, name another folder, or replace it with --overwrite."
    if differing := {key: (record.get(key), value) for key, value in wanted.items() if record.get(key) != value}:
        told = "; ".join(f"{key} {there} there, {here} asked for" for key, (there, here) in differing.items())
        raise ConfigError(f"--out {out} holds another synthetic data set: {told}. {cure}")
    if (found := len(list(out.glob("*/action_*/clip_*.mp4")))) != record["clips"]:
        raise ConfigError(f"--out {out} has {found} of its {record['clips']} clips. Write it anew with --overwrite.")
    return record


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "generator" in record and "clips" in record else None


def _write(config: SyntheticConfig, actions: Sequence[PlannedAction], out: Path, console: Console) -> tuple[int, int]:
    work = out.with_name(f".{out.name}.partial")
    if work.exists():
        console.print("an earlier run was interrupted; starting anew")
        shutil.rmtree(work)
    work.mkdir(parents=True)
    splits: dict[str, dict[str, Any]] = {split: {} for split in SPLIT_NAMES}
    clips = size_bytes = 0
    for action, (annotation, written) in zip(actions, _annotations(config, actions, work, console), strict=True):
        splits[action.split][str(action.action_id)] = annotation
        clips, size_bytes = clips + len(annotation["Clips"]), size_bytes + written
    for split, entries in splits.items():
        if entries:
            document = {"Set": split, "Number of actions": len(entries), "Actions": entries}
            _dump(work / split / "annotations.json", document, indent=4)
    versions = {name: version(name) for name in ("av", "numpy")}
    record = {**config.identity(), "clips": clips, "size_bytes": size_bytes, "versions": versions}
    _dump(work / RECORD, record, indent=2)
    _move_into_place(work, out)
    return clips, size_bytes


def _annotations(
    config: SyntheticConfig, actions: Sequence[PlannedAction], work: Path, console: Console
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each action's annotation and size once its clips are written, in order, behind a progress bar."""
    make = partial(_make, work=work, seed=config.seed, size_px=(config.width, config.height))
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("actions"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=len(actions))
        for result in _mapped(make, actions, config.workers):
            bar.advance(task)
            yield result


def _mapped(
    make: partial[tuple[dict[str, Any], int]], actions: Sequence[PlannedAction], workers: int
) -> Iterator[tuple[dict[str, Any], int]]:
    if workers == 1:
        yield from map(make, actions)
        return
    # Not by fork: the progress bar runs a thread, and a forked copy of its lock may stay locked for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_parent)
    try:
        yield from pool.map(make, actions, chunksize=_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _make(action: PlannedAction, *, work: Path, seed: int, size_px: tuple[int, int]) -> tuple[dict[str, Any], int]:
    return write_action(action, work / action.split, seed=seed, size_px=size_px)


def _dump(path: Path, document: dict[str, Any], *, indent: int) -> None:
    path.write_text(json.dumps(document, indent=indent) + "\n", encoding="utf-8")


def _move_into_place(work: Path, out: Path) -> None:
    previous = out.with_name(f".{out.name}.previous")
    if previous.exists():
        shutil.rmtree(previous)
    if out.exists():
        out.rename(previous)
    work.rename(out)
    if previous.exists():
        shutil.rmtree(previous)


def _report(outcome: Outcome, config: SyntheticConfig, actions: Sequence[PlannedAction], console: Console) -> None:
    table = Table(title="actions that the official filter keeps", title_justify="left", box=None)
    table.add_column("")
    for split in SPLIT_NAMES:
        table.add_column(split, justify="right")
    kept = [action for action in actions if not action.dropped]
    for head, names in VOCABULARIES.items():
        counts = Counter((action.split, getattr(action.labels, head)) for action in kept)
        for index, name in enumerate(names):
            table.add_row(name, *(str(counts[split, index]) for split in SPLIT_NAMES))
        table.add_section()
    for title, chosen in (("kept", kept), ("dropped by the filter", [a for a in actions if a.dropped])):
        totals = Counter(action.split for action in chosen)
        table.add_row(title, *(str(totals[split]) for split in SPLIT_NAMES))
    console.print(table)
    size = f"{outcome.clips} clips, {outcome.size_bytes / 1e6:.0f} MB"
    what = "complete already, kept" if outcome.kept else f"written in {outcome.seconds:.0f} s"
    console.print(f"\n{outcome.out}: {len(actions)} actions, {size}, {what}", soft_wrap=True, highlight=False)
    root = shlex.quote(str(outcome.out))
    recipe = "--recipe cpu-demo " if config.recipe == "demo" else ""
    console.print(f"Next:\n  python -m training {recipe}--data.root {root}", soft_wrap=True, highlight=False)
