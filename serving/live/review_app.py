"""The review's page and its interface over HTTP; what it shares with the console is in `serving.live.app`.

POST /api/cases/open              {"id": "test/action_0"}
POST /api/cases/add?case=C&name=N the clip as the body; files dropped together make one case
POST /api/incidents/ID/explain    {"view": "clip_0"}
POST /api/cancel
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from serving.door import Door
from serving.live.app import ViewBody, add_incident_actions, base_app, clean_name, read_clip
from serving.live.board import Board
from serving.live.config import LiveConfig
from serving.live.desk import Desk
from serving.live.login import Who
from serving.live.recorder import Recorder
from serving.live.review import Review


class CaseBody(BaseModel):
    """Which case."""

    id: str


def build_review_app(
    config: LiveConfig, review: Review, desk: Desk, board: Board, recorder: Recorder, door: Door
) -> FastAPI:
    """Return the review's application."""

    def state() -> dict[str, Any]:
        line, head = recorder.head
        return {
            "cases": review.cases(),
            "examinations": review.examinations(),
            "incidents": [i for i in desk.incidents() if i["trigger"] == "review"],
            "notices": board.notices(),
            "console": {"server": config.target, "audit": {"line": line, "head": head}},
        }

    app = base_app(config, board, recorder, state, page="review.html", door=door)
    add_incident_actions(app, desk, truth=review.truth)

    @app.post("/api/cases/open", status_code=202)
    def _open(body: CaseBody, who: Who) -> dict[str, Any]:
        return review.open(body.id, by=who).to_json()

    @app.post("/api/cases/add", status_code=202)
    async def _add(case: str, name: str, request: Request) -> None:
        data = await read_clip(request)
        await asyncio.to_thread(review.add, clean_name(case), clean_name(name), data)

    @app.post("/api/incidents/{incident_id}/explain", status_code=202)
    def _explain(incident_id: str, body: ViewBody) -> None:
        review.explain(incident_id, body.view)

    @app.post("/api/cancel", status_code=204, response_class=Response)
    def _cancel() -> None:
        review.cancel()

    return app
