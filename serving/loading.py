"""From a directory to a generation that has passed its self-test: in this process, or in Triton."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from mvfoul.artifact import Artifact, load_artifact
from mvfoul.command import available_cpus
from mvfoul.errors import UnavailableError
from serving.backend import LocalBackend, self_test
from serving.call import Call
from serving.config import ServeConfig
from serving.generation import Generation, Role
from serving.graphs import ArtifactGraphs, OnnxGraphs
from serving.priority_pool import PriorityPool

if TYPE_CHECKING:
    from serving.triton.connection import Connection

_POLL_S: Final = 0.5

log = logging.getLogger("mvfoul.serving")


class Loader(Protocol):
    """Makes generations."""

    async def load(self, directory: Path, role: Role) -> Generation:
        """Load and verify an artifact, and run its self-test.

        Raises:
            ArtifactError: It is damaged or computes something else than at export.
            ServiceError: Triton does not take it.
        """


def load_here(config: ServeConfig, directory: Path, role: Role, line: PriorityPool) -> Generation:
    """Load an artifact into this process, its graphs on the thread of `line`; blocks.

    Raises:
        ArtifactError: It is damaged or computes something else than at export.
        ConfigError: The engine asked for is not installed.
    """
    artifact = load_artifact(directory)
    graphs = _graphs(artifact, config)
    graphs.self_test(artifact)
    log.info("%s artifact %s (%s) passed its self-test in %s", role, directory, artifact.version, graphs.name)
    return Generation(artifact, LocalBackend(graphs, line), role)


class LocalLoader:
    """Into this process, beside what is served."""

    def __init__(self, config: ServeConfig, line: PriorityPool) -> None:
        self._config = config
        self._line = line

    async def load(self, directory: Path, role: Role) -> Generation:
        """See `Loader`."""
        return await asyncio.to_thread(load_here, self._config, directory, role, self._line)


class TritonLoader:
    """Artifacts that `python -m serving.repository` has put into Triton's repository."""

    def __init__(self, config: ServeConfig, connection: Connection) -> None:
        self._config = config
        self._connection = connection

    def bind(self, artifact: Artifact, role: Role) -> Generation:
        """Return a generation without asking Triton anything."""
        from serving.triton.backend import TritonBackend

        return Generation(artifact, TritonBackend(artifact, self._connection), role)

    async def load(self, directory: Path, role: Role) -> Generation:
        """See `Loader`. Waits until Triton has the artifact, at most `--swap-timeout-s`."""
        from serving.triton.backend import TritonBackend

        artifact = await asyncio.to_thread(load_artifact, directory)
        backend = TritonBackend(artifact, self._connection)
        try:
            if self._config.triton_explicit:
                await backend.load()
            await self._wait(backend, artifact)
        except BaseException:
            await backend.aclose()
            raise
        log.info("%s artifact %s (%s) passed its self-test in %s", role, directory, artifact.version, backend.name)
        return Generation(artifact, backend, role)

    async def _wait(self, backend: TritonBackend, artifact: Artifact) -> None:
        """Repeat the self-test until Triton has polled its repository."""
        until = time.monotonic() + self._config.swap_timeout_s
        while True:
            call = Call(request_id="self-test", deadline=time.monotonic() + self._config.self_test_timeout_s)
            try:
                await self_test(backend, artifact, call)
            except UnavailableError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_POLL_S)
            else:
                return


if TYPE_CHECKING:
    from serving.triton.backend import TritonBackend


def _graphs(artifact: Artifact, config: ServeConfig) -> ArtifactGraphs:
    threads = config.threads or available_cpus()
    if config.engine == "openvino":
        from serving.openvino_graphs import OpenVinoGraphs

        return OpenVinoGraphs(artifact, threads=threads)
    return OnnxGraphs(artifact, threads=threads)
