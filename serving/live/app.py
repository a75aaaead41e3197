"""The page, its interface over HTTP, its events, and /metrics.

    GET  /                                    the page
    GET  /api/state   /api/events             everything as JSON; the same, then each change (server-sent events)
    POST /api/trigger                         {"seconds_ago": 1.5} or {"contact_s": UNIX seconds}; who and a note
    POST /api/incidents/ID/drop               {"view": "left", "back": false}
    POST /api/incidents/ID/shift              {"frames": -3}
    POST /api/incidents/ID/ask
    POST /api/incidents/ID/replay?name=NAME   the clip as the body, contact 3 s after its start
    GET  /api/clips/SHA256.mp4   /api/incidents/ID/case.zip
    GET  /healthz   /metrics

A request that a page of another origin sent is refused: whoever reads mail on the operator's machine must not be able
to trigger or drop anything. Where tokens are asked for (`serving.live.login`), everything but /healthz and /metrics
needs one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from pydantic import BaseModel, Field

from mvfoul.errors import ConfigError
from serving.door import Door
from serving.live.board import Board
from serving.live.camera import Camera
from serving.live.case import case_zip
from serving.live.clock import now_s
from serving.live.config import LiveConfig
from serving.live.desk import Desk, DeskError
from serving.live.guard import Guard
from serving.live.login import Login, Who
from serving.live.metrics import CameraCollector
from serving.live.recorder import Recorder
from serving.live.routines import Routines
from serving.live.trigger import NotInBufferError, TriggerBody, open_incident

STATIC: Final = Path(__file__).parent / "static"
MAX_CLIP_BYTES: Final = 64 << 20
KEEP_ALIVE_S: Final = 10.0

log = logging.getLogger("mvfoul.live")


class ViewBody(BaseModel):
    """Which view to drop, or to take back."""

    view: str
    back: bool = False


class ShiftBody(BaseModel):
    """By how many frames at 25 fps to move the contact."""

    frames: Annotated[int, Field(ge=-250, le=250)]


def build_app(
    config: LiveConfig,
    cameras: Sequence[Camera],
    desk: Desk,
    board: Board,
    recorder: Recorder,
    routines: Routines,
    door: Door,
) -> FastAPI:
    """Return the console's application."""
    REGISTRY.register(CameraCollector(lambda: [camera.health() for camera in cameras]))

    def state() -> dict[str, Any]:
        line, head = recorder.head
        return {
            "cameras": routines.healths(),
            "incidents": desk.incidents(),
            "notices": board.notices(),
            "watching": routines.watching,
            "console": {
                "server": config.target,
                "operator": config.operator,
                "contact_offset_s": config.contact_offset_s,
                "audit": {"line": line, "head": head},
                "now_s": now_s(),
            },
        }

    app = base_app(config, board, recorder, state, page="index.html", door=door)
    _add_triggers(app, config, desk)
    add_incident_actions(app, desk)
    return app


def base_app(
    config: LiveConfig,
    board: Board,
    recorder: Recorder,
    state: Callable[[], dict[str, Any]],
    *,
    page: str,
    door: Door,
) -> FastAPI:
    """Return what the console and the review share: page, state, events, clips, metrics."""
    app = FastAPI(title="VARS console", docs_url=None, redoc_url=None)
    app.add_middleware(Login, door=door)
    # Added last, asked first: another site's page learns not even that a token is wanted.
    app.add_middleware(Guard, hosts=(config.host, *config.allowed_host))
    for kind in (DeskError, ConfigError):
        app.exception_handler(kind)(_not_possible)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    def _page() -> FileResponse:
        return FileResponse(STATIC / page)

    @app.get("/api/state")
    def _state(who: Who) -> dict[str, Any]:
        return {**state(), "who": who}

    @app.get("/api/events")
    async def _events(request: Request, who: Who) -> StreamingResponse:
        events = _stream(request, board, lambda: {**state(), "who": who})
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/api/clips/{name}.mp4")
    def _clip(name: str) -> Response:
        if not re.fullmatch("[0-9a-f]{64}", name) or (data := recorder.clip(name)) is None:
            raise HTTPException(404, "this clip is no longer kept; the audit log has its hash")
        return Response(data, media_type="video/mp4", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/healthz", include_in_schema=False)
    def _health() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/metrics", include_in_schema=False)
    def _metrics() -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_triggers(app: FastAPI, config: LiveConfig, desk: Desk) -> None:
    @app.post("/api/trigger", status_code=202)
    def _trigger(body: TriggerBody, who: Who) -> dict[str, Any]:
        try:
            return open_incident(body, config, desk, by=who).to_json()
        except NotInBufferError as error:
            raise HTTPException(422, str(error)) from error

    @app.post("/api/incidents/{incident_id}/shift", status_code=202)
    def _shift(incident_id: str, body: ShiftBody, who: Who) -> None:
        desk.shift(incident_id, body.frames, by=who)


def add_incident_actions(
    app: FastAPI, desk: Desk, *, truth: Callable[[str], Mapping[str, str] | None] = lambda _: None
) -> None:
    """Add what can be done with an incident, whatever its views are; `truth` is what was annotated, by incident."""

    @app.post("/api/incidents/{incident_id}/drop", status_code=202)
    def _drop(incident_id: str, body: ViewBody, who: Who) -> None:
        desk.drop(incident_id, body.view, back=body.back, by=who)

    @app.post("/api/incidents/{incident_id}/ask", status_code=202)
    def _ask(incident_id: str, who: Who) -> None:
        desk.ask_again(incident_id, by=who)

    @app.post("/api/incidents/{incident_id}/replay", status_code=202)
    async def _replay(incident_id: str, name: str, request: Request, who: Who) -> None:
        data = await read_clip(request)
        await asyncio.to_thread(desk.add_replay, incident_id, clean_name(name), data, by=who)

    @app.get("/api/incidents/{incident_id}/case.zip")
    def _case(incident_id: str) -> Response:
        incident = desk.complete(incident_id)
        headers = {"Content-Disposition": f'attachment; filename="case-{incident.id}.zip"'}
        return Response(case_zip(incident, truth=truth(incident_id)), media_type="application/zip", headers=headers)


async def read_clip(request: Request) -> bytes:
    """Return a request's body, a clip.

    Raises:
        HTTPException: It is empty or too large.
    """
    parts: list[bytes] = []
    async for part in request.stream():
        parts.append(part)
        if sum(map(len, parts)) > MAX_CLIP_BYTES:
            raise HTTPException(413, f"a clip may have {MAX_CLIP_BYTES >> 20} MiB")
    if not any(parts):
        raise HTTPException(422, "the clip is empty")
    return b"".join(parts)


def clean_name(name: str) -> str:
    """Return a file's name as the name of a view: letters, digits and a few signs."""
    return re.sub(r"[^\w.-]+", "-", name)[-60:].strip("-.") or "replay"


async def _stream(request: Request, board: Board, state: Callable[[], dict[str, Any]]) -> AsyncIterator[str]:
    """Yield a snapshot, then every change; a comment now and then shows that the line is alive."""
    loop, waiting = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(waiting.set)

    subscriber = board.subscribe(wake)
    try:
        yield _event("snapshot", await asyncio.to_thread(state))
        while not (board.is_closed or await request.is_disconnected()):
            try:
                await asyncio.wait_for(waiting.wait(), KEEP_ALIVE_S)
            except TimeoutError:
                yield ": alive\n\n"
            waiting.clear()
            events, lost = board.take(subscriber)
            if lost:
                yield _event("snapshot", await asyncio.to_thread(state))
            for event in events:
                yield _event(event.kind, event.data)
    finally:
        board.unsubscribe(subscriber)
        if not board.is_closed:
            log.info("a page at %s went away", request.client.host if request.client else "an unknown address")


def _event(kind: str, data: Any) -> str:
    return f"event: {kind}\nretry: 500\ndata: {json.dumps(data)}\n\n"


async def _not_possible(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 409)
