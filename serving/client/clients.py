"""The two clients: one waits for answers, the other awaits them. What they ask is written once, in `Asking`."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from mvfoul.errors import UnavailableError
from serving.client.connection import Connection, Tls
from serving.client.decision import Decision, ModelInfo, read_model_info
from serving.client.question import Priority, Question, failure_of, session_parameters

A = TypeVar("A")
"""What `classify` returns: a decision, or a coroutine that does."""


class Asking(ABC, Generic[A]):
    """What can be asked of a server."""

    def __init__(
        self,
        target: str = "127.0.0.1:8081",
        *,
        model_name: str = "mvfoul",
        timeout_s: float = 30.0,
        retries: int = 0,
        tls: Tls | None = None,
        token: str = "",
    ) -> None:
        """Prepare the connection; nothing is sent yet.

        Args:
            target: host:port of the server's gRPC.
            model_name: The model to ask.
            timeout_s: How long one answer may take, repetitions included.
            retries: How often a request is sent again that met an overloaded, stopped or unreachable server, with
                growing pauses. 0 by default: who decides live wants to know at once. With `drop_views` only an
                overloaded server is asked again: of the others nobody knows whether they have dropped them already.
            tls: How to encrypt; None does not.
            token: Sent as `authorization: Bearer ...`; anybody on the way can read it without `tls`.
        """
        self._connection = Connection(
            target=target, model_name=model_name, timeout_s=timeout_s, retries=retries, tls=tls, token=token
        )

    def classify(
        self,
        clips: Sequence[bytes],
        *,
        request_id: str = "",
        action_id: str = "",
        drop_views: Sequence[int] = (),
        priority: Priority = "live",
        timeout_s: float | None = None,
    ) -> A:
        """Classify one action from its encoded clips, one per view.

        Args:
            clips: The files' bytes. In a session only those that it does not have yet; there may be none.
            request_id: For logs; one is made if it is empty.
            action_id: Views of one action that arrive one by one are sent with the same id, and each answer is over
                all so far.
            drop_views: Views that the session forgets first, by their number in it.
            priority: Of requests that wait, live ones go first.
            timeout_s: In place of the client's own.

        Raises:
            RequestError: The server refuses the clips or the model's name. Do not repeat it.
            UnauthenticatedError: It wants another token, or one at all.
            OverloadedError: It has too many requests in flight. Repeat it with backoff.
            DeadlineError: It did not answer in time.
            UnavailableError: It cannot be reached, or its answer was lost. Do not repeat it with the same `drop_views`:
                they may be gone, and the numbers be those of other views.
            ServiceError: Anything else.
        """
        parameters = session_parameters(action_id, drop_views)
        return self._ask(
            Question(
                self._connection,
                list(clips),
                request_id=request_id,
                parameters=parameters,
                priority=priority,
                timeout_s=timeout_s,
            )
        )

    def classify_views(
        self,
        views: NDArray[np.uint8],
        *,
        request_id: str = "",
        action_id: str = "",
        drop_views: Sequence[int] = (),
        priority: Priority = "live",
        timeout_s: float | None = None,
    ) -> A:
        """Classify one action from decoded views `[V, 3, T, H, W]`; arguments and errors are those of `classify`."""
        parameters = session_parameters(action_id, drop_views)
        return self._ask(
            Question(
                self._connection,
                views,
                request_id=request_id,
                parameters=parameters,
                priority=priority,
                timeout_s=timeout_s,
            )
        )

    def pin(self, version: str) -> None:
        """Let only this version of the artifact answer from now on, or UnknownModelError be raised; empty: any."""
        self._connection = replace(self._connection, version=version)

    @abstractmethod
    def _ask(self, question: Question) -> A:
        """Send the question until there is an answer, or an error that no repetition cures."""

    def _probe(self) -> dict[str, Any]:
        """Return the arguments of a call that is no inference."""
        return {"headers": self._connection.headers, "client_timeout": self._connection.timeout_s}


class FoulClient(Asking[Decision]):
    """A connection to one server; usable from several threads."""

    _client: Any = None
    _opening = threading.Lock()

    def ready(self) -> bool:
        """Return whether the server answers requests; False also where nobody is."""
        with suppress(UnavailableError):
            return bool(self._call("is_server_ready"))
        return False

    def metadata(self) -> ModelInfo:
        """Return what the server says about its model; raises as `classify` does."""
        return read_model_info(self._call("get_model_metadata", model_name=self._connection.model_name))

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _ask(self, question: Question) -> Decision:
        triton, client = self._open()
        while True:
            try:
                return question.decision(client.infer(**question.arguments(triton)))
            except triton.InferenceServerException as error:
                pause_s = question.pause_after(error.status(), error.message())
            time.sleep(pause_s)

    def _call(self, method: str, **arguments: Any) -> Any:
        triton, client = self._open()
        try:
            return getattr(client, method)(**arguments, **self._probe())
        except triton.InferenceServerException as error:
            raise failure_of(self._connection, error.status(), error.message()) from error

    def _open(self) -> tuple[Any, Any]:
        # Late, so that `--help` answers at once.
        import tritonclient.grpc as triton

        with self._opening:
            if self._client is None:
                self._client = triton.InferenceServerClient(**self._connection.channel())
            return triton, self._client


class AsyncFoulClient(Asking[Coroutine[Any, Any, Decision]]):
    """A connection to one server, for one event loop; any number of requests at a time."""

    _client: Any = None

    async def ready(self) -> bool:
        """Return whether the server answers requests; False also where nobody is."""
        with suppress(UnavailableError):
            return bool(await self._call("is_server_ready"))
        return False

    async def metadata(self) -> ModelInfo:
        """Return what the server says about its model; raises as `classify` does."""
        return read_model_info(await self._call("get_model_metadata", model_name=self._connection.model_name))

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def _ask(self, question: Question) -> Decision:
        triton, client = self._open()
        while True:
            try:
                return question.decision(await client.infer(**question.arguments(triton)))
            except triton.InferenceServerException as error:
                pause_s = question.pause_after(error.status(), error.message())
            await asyncio.sleep(pause_s)

    async def _call(self, method: str, **arguments: Any) -> Any:
        triton, client = self._open()
        try:
            return await getattr(client, method)(**arguments, **self._probe())
        except triton.InferenceServerException as error:
            raise failure_of(self._connection, error.status(), error.message()) from error

    def _open(self) -> tuple[Any, Any]:
        import tritonclient.grpc as triton
        from tritonclient.grpc import aio

        if self._client is None:
            self._client = aio.InferenceServerClient(**self._connection.channel())
        return triton, self._client
