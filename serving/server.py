"""Both protocols over one engine: where they listen, when they are ready, how they stop.

`ModelServer.start` of KServe listens on every interface and answers new requests with NOT_FOUND while it stops; the
methods replaced here bind the address that was asked for and finish what is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

from kserve import ModelServer
from kserve.model_repository import ModelRepository

from mvfoul.errors import MVFoulError
from serving.access import Access
from serving.config import ServeConfig
from serving.dataplane import ClosedRepository, FoulDataPlane
from serving.grpc_server import FoulServicer, build_grpc_server
from serving.model import FoulModel
from serving.parts import Parts
from serving.rest_server import InferEndpoint, RestServer, bind, build_app

_LAST_ANSWERS_S = 1.0
"""For answers that are computed but still on their way out."""

log = logging.getLogger("mvfoul.serving")


class FoulServer(ModelServer):  # type: ignore[misc]  # kserve has no types
    """Both protocols over one engine."""

    def __init__(self, config: ServeConfig, parts: Parts, access: Access) -> None:
        registry = ModelRepository()
        super().__init__(registered_models=registry, enable_latency_logging=False)
        self._config = config
        self._parts = parts
        self._access = access
        self._model = FoulModel(config.model_name, parts.engine, parts.observer, parts.readiness)
        self._model.shadow = lambda: parts.swapper.shadow
        self.register_model(self._model)
        self.dataplane = FoulDataPlane(self._model, registry)
        self.model_repository_extension = ClosedRepository(registry)

    def start(self, models: Sequence[FoulModel] = ()) -> None:
        """Serve the one model that this server was built with, until a signal.

        Raises:
            ConfigError: An address cannot be bound.
            ArtifactError: Triton computes something else than was exported.
        """
        if models:
            raise TypeError("the model is given to FoulServer's constructor")
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        try:
            await self._run()
        finally:
            await self._parts.aclose()

    async def _reload(self) -> dict[str, str]:
        """Read tokens, certificates and artifacts again; returns the versions on duty by role."""
        self._access.reload()
        return await self._parts.swapper.swap()

    async def _run(self) -> None:
        config, observer, access = self._config, self._parts.observer, self._access
        servicer = FoulServicer(self.dataplane, self.model_repository_extension, observer, access.door)
        address = _address(config.host, config.grpc_port)
        grpc_server, grpc_port = build_grpc_server(servicer, address, access, config)
        endpoint = InferEndpoint(self.dataplane, observer, access.door, config)
        swap = self._reload if config.admin else None
        app = build_app(endpoint, self.dataplane, self.model_repository_extension, access.door, swap=swap)
        with contextlib.closing(bind(config.host, config.http_port)) as listener:
            rest_server = RestServer(app, listener, access.tls, grace_s=config.grace_s)
            stopped = _on_signal()
            rest = asyncio.create_task(rest_server.run_until_stopped())
            await grpc_server.start()
            await _first_of(rest, rest_server.listening)
            background = (_in_background(self._parts.readiness.run()), _in_background(access.follow()))
            with background[0], background[1], _reloads_on_hangup(self._reload):
                starting = asyncio.create_task(self._announce_when_ready(listener.getsockname()[1], grpc_port))
                await _until_stopped(stopped, rest, starting)
            log.info("stopping: %d requests in flight", self._parts.engine.in_flight)
            self._model.stopping = True
            rest_server.should_exit = True
            # Until then new requests get UNAVAILABLE. Once it stops, the gRPC library answers what has arrived but not
            # begun with CANCELLED, which no client expects.
            await self._parts.engine.idle(config.grace_s)
            await asyncio.gather(grpc_server.stop(_LAST_ANSWERS_S), rest)
            log.info("stopped")

    async def _announce_when_ready(self, http_port: int, grpc_port: int) -> None:
        """Load canary and shadow, and say READY after the first self-test; the probes are answered before."""
        readiness = self._parts.readiness
        await readiness.first_verdict()
        if readiness.computes_something_else and readiness.failure is not None:
            raise readiness.failure
        await readiness.first_pass()
        await self._parts.swapper.start()
        self._announce(http_port, grpc_port)

    def _announce(self, http_port: int, grpc_port: int) -> None:
        host = self._config.host
        http, grpc_address = _address(host, http_port), _address(host, grpc_port)
        model = f"model={self._model.name} artifact={self._model.version}"
        # On stdout, where nothing else is written: scripts wait for this line.
        sys.stdout.write(f"READY http={http} grpc={grpc_address} {model}\n")
        sys.stdout.flush()


async def _first_of(task: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait for the event; raise what ended the task, if it ends first."""
    waiter = asyncio.create_task(event.wait())
    await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task.done():
        task.result()


async def _until_stopped(stopped: asyncio.Event, rest: asyncio.Task[None], starting: asyncio.Task[None]) -> None:
    """Wait for the signal; raise what ended the REST server or the start before it."""
    signalled = asyncio.create_task(_first_of(rest, stopped))
    try:
        await asyncio.wait((signalled, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        await signalled
    finally:
        starting.cancel()
        signalled.cancel()


@contextlib.contextmanager
def _in_background(work: Coroutine[None, None, None]) -> Iterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()


@contextlib.contextmanager
def _reloads_on_hangup(reload: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """Reload at each SIGHUP; what is refused is in the log and in the metrics."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def swap() -> None:
        with contextlib.suppress(MVFoulError):
            await reload()

    def begin() -> None:
        task = loop.create_task(swap())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # while requests drain, too
        for task in tuple(tasks):
            task.cancel()


def _on_signal() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets; the second signal ends the process at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopped.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopped


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
