"""One artifact on duty, and who answers a request: the primary, or the canary for its share.

A request keeps its generation from its first check to its answer, so that no answer mixes two artifacts. A generation
that is replaced finishes what it has, sessions included, and is then closed.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from mvfoul.artifact import Artifact
from mvfoul.clip import ClipSpec
from mvfoul.errors import UnknownModelError
from serving.backend import Backend

Role = Literal["primary", "canary", "shadow"]
ROLES: Final[tuple[Role, ...]] = ("primary", "canary", "shadow")

log = logging.getLogger("mvfoul.serving")


@dataclass(eq=False)
class Generation:
    """An artifact with the backend that runs it."""

    artifact: Artifact
    backend: Backend
    role: Role = "primary"
    _users: int = field(default=0, repr=False)
    _retired: bool = field(default=False, repr=False)
    _closing: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def clip(self) -> ClipSpec:
        """How its clips become views."""
        return self.artifact.manifest.clip

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the backend open: for a request, or for as long as a session lives (`hold` and `release`)."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def hold(self) -> None:
        """Count one more user."""
        self._users += 1

    def release(self) -> None:
        """Count one less; the last one closes a retired generation."""
        self._users -= 1
        self._close_if_done()

    def retire(self) -> None:
        """Close the backend once nobody uses it any more. Call it from the event loop."""
        self._retired = True
        self._close_if_done()

    async def closed(self) -> None:
        """Wait for the end of a retired generation."""
        while self._closing is None:
            await asyncio.sleep(0.01)
        await self._closing

    def _close_if_done(self) -> None:
        if self._retired and not self._users and self._closing is None:
            log.info("artifact %s: the last request is answered; closed", self.artifact.version)
            self._closing = asyncio.get_running_loop().create_task(self.backend.aclose())


@dataclass
class Router:
    """Which generation answers."""

    primary: Generation
    canary: Generation | None = None
    canary_share: float = 0.0
    """Of all requests, 0 to 1."""

    @property
    def versions(self) -> list[str]:
        """The versions that answer, the primary's first."""
        return [generation.artifact.version for generation in (self.primary, self.canary) if generation]

    def named(self, version: str) -> Generation:
        """Return who has this version.

        Raises:
            UnknownModelError: Nobody on duty.
        """
        for generation in (self.primary, self.canary):
            if generation is not None and generation.artifact.version == version:
                return generation
        raise UnknownModelError(
            f"version {version[:64]!r} is not served here; this server has {', '.join(self.versions)}. "
            "Leave the version out to take what is there."
        )

    def pick(self, key: str, view_shape: tuple[int, ...] | None = None) -> Generation:
        """Return who answers; the same key is always answered by the same one.

        Args:
            key: The session's name, or the request's id.
            view_shape: Of decoded views in the request: a canary that takes another shape does not get them.
        """
        canary = self.canary
        if canary is None or (view_shape is not None and view_shape != canary.clip.view_shape):
            return self.primary
        # 2**32 values of a checksum, spread evenly; no secret depends on it.
        return canary if zlib.crc32(key.encode()) < self.canary_share * 2**32 else self.primary
