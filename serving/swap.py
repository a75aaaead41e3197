"""Another artifact goes live while requests run: load beside the old one, test, switch, let the old one finish.

The switch is one assignment between two requests. What fails before it leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mvfoul.artifact import Artifact, read_manifest, version_of
from mvfoul.errors import MVFoulError, ServiceError
from serving.engine import Engine
from serving.generation import Generation, Role
from serving.loading import Loader
from serving.shadow import Shadow

log = logging.getLogger("mvfoul.serving")


@dataclass(frozen=True)
class Directories:
    """Where the artifact of each role lies. The directories are read again at each swap."""

    primary: Path
    canary: Path | None = None
    shadow: Path | None = None


class Swapper:
    """Swaps one after the other, however many are asked for."""

    def __init__(
        self, engine: Engine, loader: Loader, directories: Directories, make_shadow: Callable[[Generation], Shadow]
    ) -> None:
        self._engine = engine
        self._loader = loader
        self._directories = directories
        self._make_shadow = make_shadow
        self._lock = asyncio.Lock()
        self.shadow: Shadow | None = None
        self.observe: Callable[[str], None] = lambda _outcome: None
        """Called with "ok" or "refused"."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after each switch, before the next request."""

    async def start(self) -> None:
        """Load canary and shadow, where there are any; one that cannot be served is left out until the next swap.

        By now the server is ready: to end for want of a canary would take the primary's answers with it.
        """
        for load in (self._load_canary, self._load_shadow):
            try:
                await load()
            except MVFoulError as error:
                self._refused(error)
                log.warning("it is served without until the next reload (SIGHUP, or POST /admin/reload)")

    async def swap(self) -> dict[str, str]:
        """Read all directories again and put on duty what is new there; returns the versions on duty by role.

        Raises:
            MVFoulError: An artifact is refused. What was on duty in its role stays, and in those not yet looked at.
        """
        async with self._lock:
            try:
                await self._load_primary()
                await self._load_canary()
                await self._load_shadow()
            except MVFoulError as error:
                self._refused(error)
                raise
            except Exception as error:
                # A disk's or an engine's own exception: it is refused like any other, and says so.
                log.exception("the swap broke")
                self._refused(error)
                raise ServiceError(f"the artifact could not be loaded: {error!r}") from error
            self.observe("ok")
            return self.versions()

    def _refused(self, error: Exception) -> None:
        self.observe("refused")
        # Roles before the refused one may have changed, and stay so.
        log.warning("swap refused: %s On duty: %s", error, self.on_duty())

    def on_duty(self) -> str:
        """Return the versions on duty by role, for people."""
        return ", ".join(f"{role} {version}" for role, version in self.versions().items())

    def artifacts(self) -> dict[str, Artifact]:
        """Return the artifacts on duty by role."""
        router = self._engine.router
        shadow = self.shadow.generation if self.shadow else None
        return {g.role: g.artifact for g in (router.primary, router.canary, shadow) if g is not None}

    def versions(self) -> dict[str, str]:
        """Return the versions on duty by role."""
        return {role: artifact.version for role, artifact in self.artifacts().items()}

    async def aclose(self) -> None:
        """Close the shadow; the engine closes the rest."""
        if self.shadow is not None:
            await self.shadow.aclose()

    async def _load_primary(self) -> None:
        router = self._engine.router
        new = await self._changed(self._directories.primary, "primary", router.primary)
        if new is not None:
            old, router.primary = router.primary, new
            self._switched(old, new)

    async def _load_canary(self) -> None:
        if self._directories.canary is None:
            return
        router = self._engine.router
        new = await self._changed(self._directories.canary, "canary", router.canary)
        if new is not None:
            old, router.canary = router.canary, new
            self._switched(old, new)

    async def _load_shadow(self) -> None:
        if self._directories.shadow is None:
            return
        new = await self._changed(self._directories.shadow, "shadow", self.shadow.generation if self.shadow else None)
        if new is not None:
            old, self.shadow = self.shadow, self._make_shadow(new)
            self._switched(None, new)
            if old is not None:
                await old.aclose()

    async def _changed(self, directory: Path, role: Role, now: Generation | None) -> Generation | None:
        if now is not None and version_of(read_manifest(directory)) == now.artifact.version:
            return None
        return await self._loader.load(directory, role)

    def _switched(self, old: Generation | None, new: Generation) -> None:
        was = f", replacing {old.artifact.version}" if old else ""
        log.info("%s artifact %s is on duty%s", new.role, new.artifact.version, was)
        self.on_change()
        if old is not None:
            old.retire()
