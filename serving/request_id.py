"""By which name a request stands in logs, traces and answers: its own, that of a proxy before us, or one made here."""

from __future__ import annotations

import uuid
from typing import Final
from urllib.parse import quote

REQUEST_ID_HEADER: Final = "x-request-id"
"""A header of REST, and metadata of gRPC: in requests and in answers, refusals included."""
_MAX_CHARS: Final = 256


def choose_request_id(own: str, header: str | bytes | None) -> str:
    """Return the id of a request.

    Args:
        own: The protocol's field; empty where the client left it out.
        header: What stands in `REQUEST_ID_HEADER`.
    """
    text = header.decode(errors="replace") if isinstance(header, bytes) else header or ""
    return own or text[:_MAX_CHARS] or uuid.uuid4().hex


def as_header(request_id: str) -> str:
    """Return an id as a header may carry it: what is not printable ASCII is percent-encoded."""
    # JSON can say half a surrogate, which UTF-8 cannot.
    return quote(request_id[:_MAX_CHARS], errors="replace", safe=" !#$&'()*+,/:;=?@[]{}|<>\"`^\\")
