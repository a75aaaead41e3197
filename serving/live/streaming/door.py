"""Where clients of a stream protocol knock: a listening socket with a thread for each of them."""

from __future__ import annotations

import socketserver
from collections.abc import Mapping
from typing import ClassVar

from serving.live.streaming.channel import Channel


class Door:
    """Answers for some channels until it is closed. A subclass says which server and handler speak its protocol."""

    server_class: ClassVar[type[socketserver.TCPServer]]
    handler_class: ClassVar[type[socketserver.BaseRequestHandler]]

    def __init__(self, channels: Mapping[str, Channel], host: str, port: int) -> None:
        handler = type("Handler", (self.handler_class,), {"channels": channels})
        self._server = self.server_class((host, port), handler)
        self._server.daemon_threads = True  # type: ignore[attr-defined]  # of socketserver.ThreadingMixIn
        self.port: int = self._server.server_address[1]

    def serve(self) -> None:
        """Answer requests until `close`."""
        self._server.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
