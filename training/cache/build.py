"""Fills a cache from several processes, and removes what is stale from it."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mvfoul.command import INTERRUPTED
from mvfoul.layout import Split, canonical_split, find_split, split_folders
from training.annotations import ClipRecord, load_annotations
from training.cache.config import CacheConfig
from training.cache.store import CacheFullError, ClipStore, DamagedEntryError, Entry, Source, decoder_identity
from training.frames import FrameRule, decode_or_reason

EXIT_FULL: Final = 1
_GIB: Final = 1 << 30
_WAITING_PER_PROCESS: Final = 4


@dataclass(frozen=True)
class Task:
    """One clip to decode."""

    clip: ClipRecord
    rule: FrameRule


@dataclass(frozen=True)
class Outcome:
    """What became of it."""

    kind: str
    """there, added, unreadable, full."""
    detail: str = ""


@dataclass
class Summary:
    """What became of all."""

    kinds: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    full: str = ""

    @property
    def done(self) -> int:
        """Clips looked at."""
        return self.kinds.total()

    def add(self, task: Task, outcome: Outcome) -> None:
        """Count one clip."""
        self.kinds[outcome.kind] += 1
        if outcome.kind == "unreadable":
            self.unreadable.append(f"{task.clip.path}: {outcome.detail}")
        if outcome.kind == "full":
            self.full = outcome.detail


def run(config: CacheConfig) -> int:
    """Build or prune, say what was done, return the exit code.

    Raises:
        ConfigError: The folder cannot be used.
        AnnotationError: A split is missing, or its annotations cannot be used.
    """
    console = Console(highlight=False, soft_wrap=True)
    store = ClipStore(config.data.cache_dir, limit_bytes=int(config.data.cache_gib * _GIB))
    if config.prune:
        return _prune(store, config.data.root, console)
    tasks = tasks_of(config)
    started, before = time.monotonic(), store.used_bytes()
    summary, interrupted = Summary(), False
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=len(tasks))
        try:
            for task, outcome in build(tasks, config):
                summary.add(task, outcome)
                bar.advance(shown)
        except KeyboardInterrupt:
            interrupted = True
    _report(console, summary, total=len(tasks))
    used, seconds = store.used_bytes(), time.monotonic() - started
    console.print(
        f"{(used - before) / _GIB:.2f} GiB added in {seconds:.0f} s; {store.folder} has {used / _GIB:.2f} GiB"
    )
    if interrupted:
        console.print("interrupted; the same command goes on")
        return INTERRUPTED
    return EXIT_FULL if summary.full else 0


def tasks_of(config: CacheConfig) -> list[Task]:
    """List the clips of the usable actions of the splits.

    Raises:
        AnnotationError: A split is missing, or its annotations cannot be used.
    """
    root = config.data.root
    splits: tuple[Split, ...] = tuple(dict.fromkeys(map(canonical_split, config.split))) or tuple(split_folders(root))
    if not splits:
        find_split(root, "train")  # says what is wrong with the root
    tasks = []
    for split in splits:
        jitter = config.temporal_jitter if split == "train" else 0
        rule = FrameRule(config.clip.spec(), jitter=jitter, replay_aware=config.data.replay_aware)
        records = load_annotations(root, split).records
        tasks += [Task(clip, rule) for record in records for clip in record.clips]
    return tasks


def build(tasks: Sequence[Task], config: CacheConfig) -> Iterator[tuple[Task, Outcome]]:
    """Decode what is not in the cache yet, in several processes, until it is full; yield each clip when it is done.

    When the caller stops, what is being decoded is finished and kept, the rest is left.
    """
    limit_bytes = int(config.data.cache_gib * _GIB)
    # Spawned: nothing of this process (threads, locks) can hang a copy of it.
    pool = ProcessPoolExecutor(
        config.processes, get_context("spawn"), initializer=_open, initargs=(config.data.cache_dir, limit_bytes)
    )
    try:
        for task, future in _some_ahead(pool, tasks, config.processes * _WAITING_PER_PROCESS):
            outcome = future.result()
            yield task, outcome
            if outcome.kind == "full":
                return
    finally:
        pool.shutdown(cancel_futures=True)


def _some_ahead(pool: ProcessPoolExecutor, tasks: Sequence[Task], ahead: int) -> Iterator[tuple[Task, Future[Outcome]]]:
    rest = iter(tasks)
    waiting = [(task, pool.submit(_decode, task)) for task in islice(rest, ahead)]
    while waiting:
        yield waiting.pop(0)
        waiting += [(task, pool.submit(_decode, task)) for task in islice(rest, 1)]


_STORES: Final[list[ClipStore]] = []
"""Of a worker process: one, made by `_open`."""


def _open(folder: Path, limit_bytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides.
    _STORES.append(ClipStore(folder, limit_bytes=limit_bytes))


def _decode(task: Task) -> Outcome:
    (store,) = _STORES
    spec = task.rule.source(task.clip.replay_speed)
    try:
        source = Source.of(task.clip.path)
        if store.has(source, spec):
            try:
                found = store.get(source, spec)
            except DamagedEntryError:
                found = None
            if found is not None:
                return Outcome("unreadable", found) if isinstance(found, str) else Outcome("there")
        content = decode_or_reason(task.clip, spec)
        store.put(source, spec, content)
    except CacheFullError as error:
        return Outcome("full", str(error))
    except OSError as error:
        return Outcome("unreadable", str(error))
    return Outcome("unreadable", content) if isinstance(content, str) else Outcome("added")


def _report(console: Console, summary: Summary, *, total: int) -> None:
    kinds = summary.kinds
    console.print(
        f"{summary.done} of {total} clips: {kinds['added']} decoded, {kinds['there']} were there, "
        f"{kinds['unreadable']} cannot be decoded"
    )
    for sentence in summary.unreadable[:5]:
        console.print(f"  {sentence}", markup=False)
    if len(summary.unreadable) > 5:
        console.print(f"  and {len(summary.unreadable) - 5} more: python -m training.check_data --deep lists all")
    if summary.full:
        console.print(f"full: {summary.full}", markup=False, style="red")


def stale(entry: Entry, root: Path) -> str | None:
    """Return why an entry can no longer be found, or None."""
    header = entry.header
    if not header:
        return "damaged"
    if header["decoder"] != decoder_identity():
        return "of another decoder version"
    for path in (root / header["name"], Path(header["path"])):
        try:
            found = Source.of(path)
        except OSError:
            continue
        if (found.size_bytes, found.mtime_ns) == (header["size_bytes"], header["mtime_ns"]):
            return None
    return "of a clip that changed or is gone"


def _prune(store: ClipStore, root: Path, console: Console) -> int:
    find_root = split_folders(root)  # refuses a root that is none: everything would look gone
    if not find_root:
        find_split(root, "train")
    reasons: Counter[str] = Counter()
    freed = 0
    for entry in store.entries():
        if (reason := stale(entry, root)) is not None:
            store.remove(entry)
            reasons[reason] += 1
            freed += entry.size_bytes
    for reason, count in reasons.items():
        console.print(f"{count} entries removed: {reason}")
    console.print(f"{freed / _GIB:.2f} GiB freed; {store.folder} has {store.used_bytes() / _GIB:.2f} GiB")
    return 0
