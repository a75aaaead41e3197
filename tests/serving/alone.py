"""A backend in this process that shares its thread with nobody."""

from __future__ import annotations

import asyncio

from serving.backend import Graphs, LocalBackend
from serving.priority_pool import PriorityPool


class AloneBackend(LocalBackend):
    """`LocalBackend` with a thread of its own, which ends with it."""

    def __init__(self, graphs: Graphs) -> None:
        self._own = PriorityPool(1, "graphs")
        super().__init__(graphs, self._own)

    async def aclose(self) -> None:
        """End the thread."""
        await asyncio.to_thread(self._own.close)
