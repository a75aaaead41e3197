"""From flags to a running console. What can be refused is refused before anything is opened."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import ExitStack

import uvicorn
from fastapi import FastAPI

from mvfoul.errors import ConfigError
from serving.access import Access
from serving.client import FoulClient
from serving.live.app import build_app
from serving.live.audit import AuditLog
from serving.live.board import Board
from serving.live.camera import Camera, CameraSpec
from serving.live.config import LiveConfig
from serving.live.cutting import DeskSettings
from serving.live.desk import Desk
from serving.live.grpc_trigger import grpc_triggers
from serving.live.library import find_cases
from serving.live.login import make_access
from serving.live.metrics import LiveMetrics
from serving.live.recorder import Recorder
from serving.live.review import Review
from serving.live.review_app import build_review_app
from serving.live.routines import Routines
from serving.live.timecodes import read_timecodes

log = logging.getLogger("mvfoul.live")


def run(config: LiveConfig) -> None:
    """Watch, or review, until SIGTERM or SIGINT; prints one line READY to stdout when the page answers.

    Raises:
        ConfigError: A file, an address or the audit directory cannot be used.
        AuditError: The audit log that is there is broken.
    """
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for name in ("mvfoul", "serving"):
        logging.getLogger(name).setLevel(config.log_level.upper())
    with ExitStack() as stack:
        access = make_access(config)
        board = Board()
        app, desk = _app(config, board, access, stack)
        listener = stack.enter_context(_bound(config.host, config.http_port))
        scheme = "https" if access.tls else "http"
        ready = f"{scheme}={_address(config.host, listener.getsockname()[1])}"
        if config.grpc_port is not None and not config.review:
            ready += f" grpc={stack.enter_context(grpc_triggers(config, desk, access))}"
        _serve(app, board, access, listener, ready)


def _app(config: LiveConfig, board: Board, access: Access, stack: ExitStack) -> tuple[FastAPI, Desk]:
    contacts = read_timecodes(config.timecodes) if config.timecodes else ()
    cases = find_cases(config.review) if config.review else {}
    audit = AuditLog(config.audit_dir)
    stack.callback(audit.close)
    recorder = Recorder(audit, board)
    client = FoulClient(config.target, **config.connection(timeout_s=config.timeout_s, retries=0))
    stack.callback(client.close)
    cameras = _cameras(config)
    settings = DeskSettings(operator=config.operator, after_s=config.after_s, wait_s=config.wait_s)
    desk = Desk(cameras, client, recorder, board, LiveMetrics(), settings)
    stack.callback(desk.close)
    for camera in cameras:
        camera.start()
        stack.callback(camera.stop)
    routines = Routines(config, cameras, desk, board, recorder, client, contacts)
    stack.callback(routines.stop)
    routines.start()
    if not config.review:
        return build_app(config, cameras, desk, board, recorder, routines, access.door), desk
    review = Review(cases, desk, client, board, artifact=config.artifact)
    stack.callback(review.cancel)
    return build_review_app(config, review, desk, board, recorder, access.door), desk


def _cameras(config: LiveConfig) -> list[Camera]:
    buffer_bytes = config.buffer_mib << 20
    return [
        Camera(CameraSpec(name, url, offset_s), buffer_s=config.buffer_s, buffer_bytes=buffer_bytes)
        for name, (url, offset_s) in config.cameras().items()
    ]


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"--http-port {port} on {host} cannot be used: {error.strerror}. Choose another.") from error


class _Announcing(uvicorn.Server):
    """Says READY once requests are answered, and ends the pages' streams when it stops: nobody waits for them."""

    def __init__(self, config: uvicorn.Config, board: Board, access: Access, ready: str) -> None:
        config.load()
        config.ssl = access.tls.context if access.tls else None
        super().__init__(config)
        self._board, self._access, self._ready = board, access, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._following = asyncio.create_task(self._access.follow())
        # On stdout, where nothing else is written: scripts wait for this line.
        sys.stdout.write(f"READY {self._ready}\n")
        sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._board.close()
        self._following.cancel()
        await super().shutdown(sockets)


def _serve(app: FastAPI, board: Board, access: Access, listener: socket.socket, ready: str) -> None:
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, access_log=False)
    _Announcing(settings, board, access, ready).run(sockets=[listener])
    log.info("stopped")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
