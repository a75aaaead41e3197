"""How many requests are in flight, and which one would be one too many: for the server, or for its client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from mvfoul.errors import OverloadedError


class Admission:
    """Counts requests. Used from the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bulk_limit = limit - limit // 4
        """Bulk requests leave the rest to live ones, which would otherwise find all places taken."""
        self._by_client: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        """Requests admitted and not yet answered."""
        return self._by_client.total()

    def check(self, client: str, client_limit: int = 0, *, bulk: bool = False) -> None:
        """Refuse a request that would be one too many.

        Args:
            client: Who asks.
            client_limit: Requests that this client may have in flight; 0: as many as all together.
            bulk: Whether its priority is low.

        Raises:
            OverloadedError: A limit is reached.
        """
        again = "Send the request again later, with backoff."
        if self.in_flight >= (limit := self.bulk_limit if bulk else self.limit):
            kind = "limit for bulk requests" if bulk and limit < self.limit else "limit"
            raise OverloadedError(f"{self.in_flight} requests are in flight, which is this server's {kind}. {again}")
        if client_limit and self._by_client[client] >= client_limit:
            raise OverloadedError(
                f"{client} has {client_limit} requests in flight, which is this client's limit. {again}"
            )

    @contextmanager
    def admitted(self, client: str, client_limit: int = 0, *, bulk: bool = False) -> Iterator[None]:
        """Count a request while it runs; raises as `check` does."""
        self.check(client, client_limit, bulk=bulk)
        self._by_client[client] += 1
        try:
            yield
        finally:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]
