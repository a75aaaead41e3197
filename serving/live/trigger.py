"""A trigger from outside, over HTTP or gRPC: what it may say, and the incident that it opens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from serving.live.clock import now_s
from serving.live.config import LiveConfig
from serving.live.desk import Desk
from serving.live.incident import Incident


class NotInBufferError(ValueError):
    """The contact is too long ago, or too far ahead."""


class TriggerBody(BaseModel):
    """What a trigger may say."""

    seconds_ago: Annotated[float, Field(ge=0, le=3600)] | None = None
    contact_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    operator: Annotated[str, Field(max_length=100)] = ""
    note: Annotated[str, Field(max_length=500)] = ""
    source: Literal["operator", "http"] = "http"
    """The page says operator."""


def open_incident(body: TriggerBody, config: LiveConfig, desk: Desk, *, by: str = "") -> Incident:
    """Open the incident that a trigger names; its decision follows on the page.

    Args:
        body: The trigger.
        config: The console's.
        desk: Where it is opened.
        by: Who signed in and sent it; empty where nobody needs to.

    Raises:
        NotInBufferError: The cameras do not hold its contact, and will not in time.
    """
    pressed_s = now_s()
    ago_s = config.contact_offset_s if body.seconds_ago is None else body.seconds_ago
    contact_s = pressed_s - ago_s if body.contact_s is None else body.contact_s
    if not pressed_s - config.buffer_s <= contact_s <= pressed_s + config.wait_s:
        held = f"the buffers hold {config.buffer_s:g} s"
        raise NotInBufferError(f"the contact is {pressed_s - contact_s:.1f} s ago; {held}.")
    # A program may name its operator; who signed in stands beside it.
    who = f"{body.operator}, signed in as {by}" if body.operator and by else body.operator or by
    return desk.trigger(contact_s, body.source, now_s=pressed_s, operator=who, note=body.note)
