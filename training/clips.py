"""One view's pixels: which frames of its clip, and whether they come from memory, from the cache or from the file.

ClipReader.read(clip, shift)   -> uint8 [3, T, H, W], or the reason why there is none
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from mvfoul.clip import ClipSpec
from mvfoul.errors import ConfigError
from training.annotations import ClipRecord
from training.cache.store import CacheFullError, ClipStore, DamagedEntryError, Pixels, Source
from training.frames import FrameRule, decode_or_reason


class ClipReader:
    """Reads clips. Sent to worker processes as it is; they share the memory of preloaded clips."""

    def __init__(self, rule: FrameRule, *, store: ClipStore | None = None) -> None:
        self.rule = rule
        self.store = store
        self._adding = store is not None and store.limit_bytes > 0
        self._preloaded: dict[str, Tensor | str] = {}
        self.preloaded_bytes = 0
        # Shared memory: what is said once is said once for all workers.
        self._told = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def read(self, clip: ClipRecord, shift: int = 0) -> Tensor | str:
        """Return a view, uint8 `[3, T, H, W]`, or the reason why there is none."""
        key = str(clip.path)
        source = self._preloaded[key] if key in self._preloaded else self._source(clip)
        if isinstance(source, str):
            return source
        places = self.rule.places(clip.replay_speed, shift)
        return source if places is None else source[:, places]

    def preload(
        self,
        clips: Sequence[ClipRecord],
        *,
        max_bytes: int,
        num_threads: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[str, ...]:
        """Hold clips in memory from now on; see `MultiViewDataset.preload`."""
        shapes = [self.rule.source(clip.replay_speed).view_shape for clip in clips]
        ends = np.cumsum([0, *(math.prod(shape) for shape in shapes)]).tolist()
        if ends[-1] > max_bytes:
            raise ConfigError(
                f"{len(clips)} clips need {ends[-1]:,} bytes of memory, max_bytes is {max_bytes:,}. "
                "Raise it, use a smaller clip spec, or do not preload."
            )
        # One block: thousands of tensors of their own would each cost a file handle under the spawn start method.
        block = torch.empty(ends[-1], dtype=torch.uint8)

        def fill(row: int) -> Tensor | str:
            view = self._source(clips[row])
            return view if isinstance(view, str) else block[ends[row] : ends[row + 1]].view(shapes[row]).copy_(view)

        loaded: dict[str, Tensor | str] = {}
        pool = ThreadPoolExecutor(num_threads)
        try:
            for row, view in enumerate(pool.map(fill, range(len(clips)))):
                loaded[str(clips[row].path)] = view
                if progress is not None:
                    progress(row + 1, len(clips))
        finally:
            # On Ctrl-C: do not decode what is still waiting.
            pool.shutdown(cancel_futures=True)
        self._preloaded, self.preloaded_bytes = loaded, ends[-1]
        return tuple(view for view in loaded.values() if isinstance(view, str))

    def _source(self, clip: ClipRecord) -> Tensor | str:
        try:
            content = self._stored(clip, self.rule.source(clip.replay_speed))
        except OSError as error:  # no permission, a network folder that went away
            content = str(error)
        return f"{clip.path}: {content}" if isinstance(content, str) else torch.from_numpy(content)

    def _stored(self, clip: ClipRecord, spec: ClipSpec) -> Pixels | str:
        if self.store is None or not clip.path.is_file():
            return decode_or_reason(clip, spec)
        source = Source.of(clip.path)
        try:
            found = self.store.get(source, spec)
        except DamagedEntryError as error:
            sys.stderr.write(f"note: {error}\n")
            found = None
        if found is None:
            found = decode_or_reason(clip, spec)
            self._add(source, spec, found)
        return found

    def _add(self, source: Source, spec: ClipSpec, content: Pixels | str) -> None:
        if self.store is None or not self._adding:
            return
        try:
            self.store.put(source, spec, content)
        except CacheFullError as error:
            self._adding = False
            if not int(self._told):
                self._told.fill_(1)
                sys.stderr.write(f"note: --data.cache-dir {error}\n")
