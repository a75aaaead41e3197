"""One action's session with the server: it is sent each view once, and answers over all that it holds.

The server forgets sessions when it restarts, and an answer that was lost on its way may or may not have reached the
session. Both end in a new session that is sent everything: slower once, never a decision over other views than shown.
A view is known by its name and its content: one that was cut anew is another view.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Literal

from mvfoul.errors import RequestError, ServiceError
from serving.client import Decision, FoulClient

Priority = Literal["live", "bulk"]


class ServerSession:
    """The session of one action. Used by one thread at a time."""

    def __init__(self, client: FoulClient, *, priority: Priority = "live") -> None:
        self._client = client
        self._priority = priority
        self.forget()

    def forget(self) -> None:
        """Begin anew: the next question sends every view."""
        self._action_id = uuid.uuid4().hex
        self._held: dict[str, bytes] = {}

    def ask(self, views: Mapping[str, bytes]) -> tuple[Decision, tuple[str, ...]]:
        """Ask about exactly these views, by name.

        Returns:
            The decision, and the names in the order of its weights.

        Raises:
            ServiceError: As `FoulClient.classify`.
        """
        try:
            decision = self._send_after_doubt(views)
            if len(decision.view_weights) != len(self._held):
                self.forget()
                decision = self._send(views)
        except ServiceError:
            self.forget()
            raise
        return decision, tuple(self._held)

    def _send_after_doubt(self, views: Mapping[str, bytes]) -> Decision:
        """A refusal may be of what the server has forgotten: ask once more with everything."""
        continued = bool(self._held)
        try:
            return self._send(views)
        except RequestError:
            if not continued:
                raise
            self.forget()
            return self._send(views)

    def _send(self, views: Mapping[str, bytes]) -> Decision:
        kept = {name: clip for name, clip in self._held.items() if views.get(name) == clip}
        new = [name for name in views if name not in kept]
        gone = [number for number, name in enumerate(self._held) if name not in kept]
        decision = self._client.classify(
            [views[name] for name in new], action_id=self._action_id, drop_views=gone, priority=self._priority
        )
        self._held = {**kept, **{name: views[name] for name in new}}
        return decision
