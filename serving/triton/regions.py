"""Regions of shared memory through which views reach a Triton on the same host without being copied into a message."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mvfoul.errors import ServiceError, UnavailableError
from serving.triton.connection import Connection

_PREFIX: Final = "mvfoul"
_REST_S: Final = 30.0
"""How long a region is left alone whose call ended without an answer. assumption: longer than Triton's queue holds."""
_MOST: Final = 4
"""Times the number of slots: more regions are never made, however many rest."""

log = logging.getLogger("mvfoul.serving")


class Regions:
    """A fixed number of regions, each of the size of the largest request; a call borrows one."""

    def __init__(self, connection: Connection, *, slots: int, size: int) -> None:
        self._connection = connection
        self._slots = slots
        self._size = size
        self._all: list[SharedMemory] = []
        self._free: asyncio.Queue[SharedMemory] = asyncio.Queue()
        self._known: set[str] = set()
        self._resting = 0

    @asynccontextmanager
    async def borrowed(self, views: NDArray[np.uint8]) -> AsyncIterator[str]:
        """Put views into a region and yield its name; waits for a free one.

        Raises:
            ConfigError: Triton cannot open it.
        """
        memory = await self._take()
        try:
            if memory.name not in self._known:
                await self._connection.register(memory.name, f"/{memory.name}", self._size)
                self._known.add(memory.name)
            np.ndarray(views.shape, np.uint8, memory.buf)[...] = views
            yield memory.name
        except BaseException:
            # Triton may still read it: who writes there now would change the pixels of a request in its queue.
            self._rest(memory)
            raise
        else:
            self._free.put_nowait(memory)

    def forget(self) -> None:
        """Register every region again when it is next used: Triton was restarted."""
        self._known.clear()

    async def aclose(self) -> None:
        """Remove all regions, from Triton too: it would keep the memory of one that only has lost its name."""
        for memory in self._all:
            try:
                await self._connection.unregister(memory.name)
            except UnavailableError:
                break  # a Triton that is gone knows none of them any more
            except ServiceError as error:
                log.warning("Triton keeps the shared memory %s: %s", memory.name, error)
        for memory in self._all:
            memory.close()
            memory.unlink()
        self._all.clear()

    async def _take(self) -> SharedMemory:
        if self._free.empty() and len(self._all) < min(self._slots + self._resting, _MOST * self._slots):
            return self._make()
        return await self._free.get()

    def _make(self) -> SharedMemory:
        name = f"{_PREFIX}-{os.getpid()}-{secrets.token_hex(4)}"
        memory = SharedMemory(name, create=True, size=self._size)
        self._all.append(memory)
        return memory

    def _rest(self, memory: SharedMemory) -> None:
        self._resting += 1
        asyncio.get_running_loop().call_later(_REST_S, self._rested, memory)

    def _rested(self, memory: SharedMemory) -> None:
        self._resting -= 1
        self._free.put_nowait(memory)
