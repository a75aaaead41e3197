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
from collections.abc import Sequence

from kserve import ModelServer
from kserve.model_repository import ModelRepository

from serving.config import ServeConfig
from serving.dataplane import ClosedRepository, FoulDataPlane
from serving.engine import Engine
from serving.grpc_server import FoulServicer, build_grpc_server
from serving.metrics import Metrics
from serving.model import FoulModel
from serving.rest_server import InferEndpoint, RestServer, bind, build_app

_LAST_ANSWERS_S = 1.0
"""For answers that are computed but still on their way out."""

log = logging.getLogger("mvfoul.serving")


class FoulServer(ModelServer):  # type: ignore[misc]  # kserve has no types
    """Both protocols over one engine."""

    def __init__(self, config: ServeConfig, engine: Engine) -> None:
        registry = ModelRepository()
        super().__init__(registered_models=registry, enable_latency_logging=False)
        self._config = config
        self._metrics = Metrics(engine.artifact)
        self._model = FoulModel(config.model_name, engine, self._metrics)
        self.register_model(self._model)
        self.dataplane = FoulDataPlane(self._model, registry)
        self.model_repository_extension = ClosedRepository(registry)

    def start(self, models: Sequence[FoulModel] = ()) -> None:
        """Serve the one model that this server was built with, until a signal.

        Raises:
            ConfigError: An address cannot be bound.
        """
        if models:
            raise TypeError("the model is given to FoulServer's constructor")
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        config = self._config
        servicer = FoulServicer(self.dataplane, self.model_repository_extension, self._metrics)
        address = _address(config.host, config.grpc_port)
        grpc_server, grpc_port = build_grpc_server(servicer, address, max_request_bytes=config.max_request_bytes)
        endpoint = InferEndpoint(self.dataplane, self._metrics, max_request_bytes=config.max_request_bytes)
        app = build_app(endpoint, self.dataplane, self.model_repository_extension)
        with contextlib.closing(bind(config.host, config.http_port)) as listener:
            rest_server = RestServer(app, listener, grace_s=config.grace_s)
            stopped = _on_signal()
            rest = asyncio.create_task(rest_server.run_until_stopped())
            await grpc_server.start()
            await _first_of(rest, rest_server.listening)
            self._announce(listener.getsockname()[1], grpc_port)
            await _first_of(rest, stopped)
            log.info("stopping: %d requests in flight", self._model.core.in_flight)
            self._model.ready = False
            rest_server.should_exit = True
            # Until then new requests get UNAVAILABLE. Once it stops, the gRPC library answers what has arrived but not
            # begun with CANCELLED, which no client expects.
            await self._model.core.idle(config.grace_s)
            await asyncio.gather(grpc_server.stop(_LAST_ANSWERS_S), rest)
            log.info("stopped")

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
