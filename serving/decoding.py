"""Clips to views on a bounded pool of threads. FFmpeg computes outside Python's lock, so threads run side by side.

Clips of live requests overtake those of bulk requests that have not begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mvfoul.clip import ClipSpec
from mvfoul.errors import InvalidClipError
from mvfoul.video import DecodeLimits, decode_clip
from serving.call import Call
from serving.priority_pool import PriorityPool


class ClipDecoder:
    """Decodes the clips of all requests; `close` it at the end."""

    def __init__(self, workers: int, limits: DecodeLimits) -> None:
        self._limits = limits
        self._pool = PriorityPool(workers, "decode")
        self._waiting = 0

    @property
    def depth(self) -> int:
        """Clips that wait or are being decoded."""
        return self._waiting

    async def decode(self, clips: Sequence[bytes], spec: ClipSpec, call: Call) -> NDArray[np.uint8]:
        """Return the views `[V, 3, T, H, W]`.

        Raises:
            InvalidClipError: Clips are unusable; the message has the number and the reason of each.
            DeadlineError: The call's deadline passed.
        """
        views = np.empty((len(clips), *spec.view_shape), dtype=np.uint8)
        jobs = [
            asyncio.wrap_future(
                self._pool.submit(call.priority, partial(self._into, views[v : v + 1], clip, spec, call))
            )
            for v, clip in enumerate(clips)
        ]
        for job in jobs:
            self._waiting += 1
            job.add_done_callback(self._done)
        # All clips are tried, so that the message names every bad one. A cancelled request cancels what has not begun.
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        failures = [(v, error) for v, error in enumerate(outcomes) if error is not None]
        for _, error in failures:
            if not isinstance(error, InvalidClipError):
                raise error
        if failures:
            raise InvalidClipError(" ".join(f"CLIPS[{v}]: {error}" for v, error in failures))
        return views

    def close(self) -> None:
        """Wait for running work and end the threads."""
        self._pool.close()

    def _done(self, _: asyncio.Future[None]) -> None:
        self._waiting -= 1

    def _into(self, place: NDArray[np.uint8], clip: bytes, spec: ClipSpec, call: Call) -> None:
        left_s = call.remaining_s()
        limits = self._limits
        if left_s is not None and left_s < limits.max_decode_s:
            limits = replace(limits, max_decode_s=left_s)
        try:
            place[0] = decode_clip(clip, spec, limits=limits)
        except InvalidClipError:
            call.remaining_s()  # over its deadline: the clip is not to blame
            raise
