"""What a server is made of, put together for its two kinds: the embedded server and the transformer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mvfoul.artifact import Artifact
from mvfoul.command import available_cpus
from mvfoul.video import DecodeLimits
from serving.call import Tracing
from serving.config import ServeConfig
from serving.drift import Drift
from serving.engine import Engine, EngineSettings
from serving.generation import Generation, Router
from serving.loading import Loader, LocalLoader, TritonLoader
from serving.metrics import Metrics
from serving.observer import Observer
from serving.priority_pool import PriorityPool
from serving.readiness import Readiness
from serving.sessions import SessionLimits
from serving.shadow import Shadow
from serving.swap import Directories, Swapper


@dataclass(frozen=True)
class Parts:
    """One of each; `aclose` in the event loop that used them."""

    engine: Engine
    observer: Observer
    readiness: Readiness
    swapper: Swapper
    close_backend: Callable[[], Awaitable[None]]
    """Closes what all generations share."""
    tracing: Tracing | None = None

    async def aclose(self) -> None:
        """Close everything."""
        await self.swapper.aclose()
        await self.engine.aclose()
        await self.close_backend()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)


def embedded(config: ServeConfig, generation: Generation, line: PriorityPool) -> Parts:
    """Return the parts of a server that computes in this process, all its graphs on the thread of `line`."""

    async def close_line() -> None:
        await asyncio.to_thread(line.close)

    return _assemble(config, _metrics(config), generation, LocalLoader(config, line), close_line)


def transformer(config: ServeConfig, artifact: Artifact) -> Parts:
    """Return the parts of a server that decodes and lets Triton compute."""
    from serving.triton.connection import Connection
    from serving.triton.settings import triton_settings

    metrics = _metrics(config)
    connection = Connection(triton_settings(config))
    connection.on_retry = metrics.retried
    loader = TritonLoader(config, connection)
    return _assemble(config, metrics, loader.bind(artifact, "primary"), loader, connection.aclose)


def _metrics(config: ServeConfig) -> Metrics:
    return Metrics(drift=Drift(window=config.drift_window, at_least=config.drift_min_answers))


def _assemble(
    config: ServeConfig,
    metrics: Metrics,
    primary: Generation,
    loader: Loader,
    close_backend: Callable[[], Awaitable[None]],
) -> Parts:
    engine = Engine(Router(primary, canary_share=config.canary_share), engine_settings(config))
    readiness = Readiness(engine, interval_s=config.self_test_interval_s, timeout_s=config.self_test_timeout_s)
    readiness.observe = metrics.self_tested
    directories = Directories(config.artifact, config.canary, config.shadow)
    swapper = Swapper(engine, loader, directories, lambda generation: Shadow(engine, generation, metrics.shadowed))
    swapper.observe = metrics.swapped
    swapper.on_change = lambda: metrics.show_artifacts(swapper.artifacts())
    swapper.on_change()
    tracing = _tracing(config)
    return Parts(engine, Observer(metrics, tracing), readiness, swapper, close_backend, tracing)


def engine_settings(config: ServeConfig) -> EngineSettings:
    """Return the engine's part of the flags."""
    return EngineSettings(
        decode_workers=config.decode_workers or available_cpus(),
        max_in_flight=config.max_in_flight,
        max_request_s=config.max_request_s,
        abstain_below=config.abstain_below,
        decode=DecodeLimits(
            max_bytes=config.max_request_bytes,
            max_frame_pixels=config.max_frame_pixels,
            max_frames=config.max_clip_frames,
            max_decode_s=config.max_decode_s,
        ),
        sessions=SessionLimits(
            max_sessions=config.max_sessions,
            max_per_client=config.max_sessions_per_client,
            ttl_s=config.session_ttl_s,
        ),
    )


def _tracing(config: ServeConfig) -> Tracing | None:
    if config.trace_endpoint is None:
        return None
    from serving.tracing import OpenTelemetry

    return OpenTelemetry(config.trace_endpoint, config.trace_ratio)
