"""The work of `python -m serving.bulk`: ask about every action, note each answer, write the file at the end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mvfoul.artifact import write_json
from mvfoul.errors import ConfigError, RequestError, UnknownModelError
from mvfoul.labels import ACTION_CLASSES, OFFENCE_SEVERITIES, FoulLabels, to_soccernet_json
from mvfoul.layout import canonical_split
from serving.bulk.actions import Action, list_actions
from serving.bulk.config import BulkConfig
from serving.bulk.journal import Heading, Journal, Outcome, read_artifact
from serving.client import AsyncFoulClient

INCOMPLETE: Final = 1
_RETRIES: Final = 1_000_000
"""The time for one action is the limit."""


def run(config: BulkConfig) -> int:
    """Return the exit code.

    Raises:
        MVFoulError: The data, the journal or the server is not what it should be. What is answered is kept.
    """
    split = canonical_split(config.split)
    actions = list_actions(config.data, split, max_views=config.max_views)
    path = config.out.with_name(f"{config.out.name}.journal")
    if config.restart:
        path.unlink(missing_ok=True)
    start = time.monotonic()
    artifact = asyncio.run(_classify_all(config, actions, path))
    heading = Heading(str(config.data.resolve()), split, artifact, config.max_views)
    with Journal(path, heading) as journal:
        outcomes = [journal.outcomes[action.action_id] for action in actions]
        _write(config.out, split, artifact, outcomes)
        journal.remove()
    for line in report_lines(config, split, artifact, outcomes, seconds=time.monotonic() - start):
        sys.stdout.write(line + "\n")
    return INCOMPLETE if any(outcome.labels is None for outcome in outcomes) else 0


async def _classify_all(config: BulkConfig, actions: Sequence[Action], path: Path) -> str:
    """Ask about what the journal does not have; return the version of the artifact that answers."""
    async with AsyncFoulClient(
        config.target, **config.connection(timeout_s=config.timeout_s, retries=_RETRIES)
    ) as client:
        client.pin(artifact := await _choose_artifact(client, config, path))
        heading = Heading(str(config.data.resolve()), canonical_split(config.split), artifact, config.max_views)
        with Journal(path, heading) as journal, _bar() as bar:
            todo = [action for action in actions if not journal.knows(action)]
            if known := len(actions) - len(todo):
                bar.console.print(f"{known} of {len(actions)} actions were answered before the interruption")
            row = bar.add_task(f"{heading.split} by {artifact}", total=len(actions), completed=known)

            def done(action: Action, outcome: Outcome) -> None:
                journal.add(action, outcome)
                bar.advance(row)

            await _in_parallel(config.concurrency, todo, lambda action: classify(client, action), done)
    return artifact


async def _choose_artifact(client: AsyncFoulClient, config: BulkConfig, path: Path) -> str:
    wanted = config.artifact or read_artifact(path)
    versions = (await client.metadata()).versions
    if wanted and wanted not in versions:
        raise ConfigError(
            f"{config.target} has artifact {', '.join(versions)}, not {wanted}"
            + ("." if config.artifact else f", whose answers are in {path}; give --restart to forget them.")
        )
    return wanted or versions[0]


async def _in_parallel(
    limit: int,
    actions: Sequence[Action],
    ask: Callable[[Action], Awaitable[Outcome]],
    done: Callable[[Action, Outcome], None],
) -> None:
    """Ask about all actions, so many at a time; the first error ends it."""
    rest = iter(actions)

    async def work() -> None:
        # One iterator for all: each takes the next action when it has its answer.
        for action in rest:
            done(action, await ask(action))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(limit, len(actions))):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors


async def classify(client: AsyncFoulClient, action: Action) -> Outcome:
    """Return what becomes of an action; where the server refuses it, its clips are asked about one by one.

    Raises:
        ServiceError: The server does not answer, or not with this artifact.
    """
    if not action.clips:
        return Outcome(action.action_id, None, "no clip on disk")
    try:
        clips = {path.name: path.read_bytes() for path in action.clips}
    except OSError as error:
        return Outcome(action.action_id, None, f"cannot read {error.filename}: {error.strerror}")
    outcome = await _try(client, action, clips)
    if outcome.labels is not None or len(clips) == 1:
        return outcome
    # Which clip it is stands in the message for people only.
    alone = {name: await _try(client, action, {name: clip}) for name, clip in clips.items()}
    refused = {name: each.reason for name, each in alone.items() if each.labels is None}
    if len(refused) == len(clips):
        return replace(outcome, reason="; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    kept = {name: clip for name, clip in clips.items() if name not in refused}
    return replace(await _try(client, action, kept), left_out=refused)


async def _try(client: AsyncFoulClient, action: Action, clips: Mapping[str, bytes]) -> Outcome:
    """Return the labels, or why the server refuses the clips."""
    request_id = f"action_{action.action_id}"[:256]
    try:
        decision = await client.classify(list(clips.values()), request_id=request_id, priority="bulk")
    except UnknownModelError:
        raise
    except RequestError as error:
        return Outcome(action.action_id, None, str(error))
    return Outcome(
        action.action_id,
        (ACTION_CLASSES.index(decision.action.label), OFFENCE_SEVERITIES.index(decision.offence_severity.label)),
    )


def _write(out: Path, split: str, artifact: str, outcomes: Sequence[Outcome]) -> None:
    report = {
        "split": split,
        "artifact": artifact,
        "actions": len(outcomes),
        "without_prediction": {o.action_id: o.reason for o in outcomes if o.labels is None},
        "clips_left_out": {o.action_id: dict(o.left_out) for o in outcomes if o.left_out},
    }
    predictions = {o.action_id: FoulLabels(*o.labels) for o in outcomes if o.labels is not None}
    try:
        write_json(out.with_name(f"{out.stem}.report.json"), report)
        write_json(out, to_soccernet_json(split, predictions))
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error}. Choose another --out.") from error


def report_lines(
    config: BulkConfig, split: str, artifact: str, outcomes: Sequence[Outcome], *, seconds: float
) -> Iterator[str]:
    """Yield the lines that the command prints."""
    skipped = [outcome for outcome in outcomes if outcome.labels is None]
    clips = sum(len(outcome.left_out) for outcome in outcomes)
    yield (
        f"{split}: {len(outcomes)} actions, {len(outcomes) - len(skipped)} predictions by artifact {artifact}, "
        f"{len(skipped)} without, {clips} clips left out; {seconds:.1f} s"
    )
    for reason, count in Counter(outcome.reason for outcome in skipped).most_common():
        names = ", ".join(outcome.action_id for outcome in skipped if outcome.reason == reason)
        yield f"{count:>7}  {reason}: actions {names}"
    yield f"written to {config.out}; what was skipped, in {config.out.with_name(f'{config.out.stem}.report.json')}"


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
