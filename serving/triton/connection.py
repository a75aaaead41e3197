"""gRPC to Triton: calls with deadline and cancellation, retries, and its statuses as our errors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from mvfoul.errors import ConfigError, DeadlineError, MVFoulError, OverloadedError, ServiceError, UnavailableError
from serving.addresses import addresses_of
from serving.call import Call
from serving.triton.extension import empty, message
from serving.triton.settings import TritonSettings

_FIRST_PAUSE_S: Final = 0.05
_MAX_MESSAGE_BYTES: Final = 2**31 - 1
_LOAD_S: Final = 600.0
"""A TensorRT plan of a large network takes a minute or two to load and warm up."""
_UNREGISTER_S: Final = 2.0
"""A Triton that hangs must not keep a transformer that wants to end."""

T = TypeVar("T")


class MissingModelError(UnavailableError):
    """Triton runs and does not have the model, or this version of it."""


class Connection:
    """Make and use it in one event loop."""

    def __init__(self, settings: TritonSettings) -> None:
        self.settings = settings
        self.on_retry: Callable[[], None] = lambda: None
        """Called before each repetition."""
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def target(self) -> str:
        """host:port."""
        return self.settings.target

    async def infer(self, request: pb.ModelInferRequest, call: Call) -> Any:
        """Return Triton's response.

        Raises:
            OverloadedError: Its queue is full, or the request waited in it for too long.
            DeadlineError: The call's deadline passed.
            MissingModelError: It lacks the model or its version.
            UnavailableError: It cannot be reached, also after the retries.
            ServiceError: Anything else.
        """
        # Each model has its own turn: with one for all, of two Tritons one would get every call of the encoder and the
        # other every call of the head while requests come one after another. gRPC shares the connections.
        stub = GRPCInferenceServiceStub(self._open(request.model_name))
        metadata = call.trace.headers() if call.trace else None
        return await self._with_retries(
            lambda: stub.ModelInfer(request, timeout=call.remaining_s(), metadata=metadata), call
        )

    async def load(self, model: str) -> None:
        """Ask for a model, in all versions that the repository has; returns when it is ready.

        Raises:
            ServiceError: Triton refuses, with its reason.
        """
        await self._extension("RepositoryModelLoad", message("RepositoryModelLoadRequest", model_name=model), _LOAD_S)

    async def register(self, name: str, key: str, size: int) -> None:
        """Make a region of shared memory known to Triton, anew if it was.

        Raises:
            ConfigError: Triton does not see it: it runs elsewhere.
        """
        try:
            await self._extension(
                "SystemSharedMemoryUnregister", message("SystemSharedMemoryUnregisterRequest", name=name)
            )
            await self._extension(
                "SystemSharedMemoryRegister",
                message("SystemSharedMemoryRegisterRequest", name=name, key=key, offset=0, byte_size=size),
            )
        except (UnavailableError, OverloadedError):
            raise
        except ServiceError as error:
            raise ConfigError(
                f"Triton at {self.target} cannot open this host's shared memory ({error}). "
                "Run it on the same host and in the same IPC namespace, or leave out --triton-shared-memory."
            ) from error

    async def unregister(self, name: str) -> None:
        """Make Triton forget a region of shared memory; it need not know it.

        Raises:
            UnavailableError: It is gone, or hangs.
        """
        request = message("SystemSharedMemoryUnregisterRequest", name=name)
        await self._extension("SystemSharedMemoryUnregister", request, _UNREGISTER_S)

    async def aclose(self) -> None:
        """Close the connections."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def _extension(self, method: str, request: Message, timeout_s: float = 10.0) -> None:
        rpc = self._open().unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=empty,
        )
        await self._with_retries(lambda: rpc(request, timeout=timeout_s), Call())

    async def _with_retries(self, attempt: Callable[[], Awaitable[T]], call: Call) -> T:
        pause_s = _FIRST_PAUSE_S
        for left in range(self.settings.retries, -1, -1):
            try:
                return await attempt()
            except grpc.aio.AioRpcError as error:
                failure = self._as_ours(error)
                if not left or not await self._may_find_another(failure, error.code()):
                    raise failure from error
                self._check_time(call, pause_s, failure)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # so that not all come back at once
            self.on_retry()
            pause_s *= 2
        raise AssertionError("unreachable")

    async def _may_find_another(self, failure: MVFoulError, code: grpc.StatusCode) -> bool:
        """Whether a repetition makes sense; inference has no side effects."""
        if isinstance(failure, MissingModelError):
            # Of several Tritons each polls the repository by itself: one has a new version before the others, and the
            # next call goes to another one.
            return await _has_several(self.target)
        return type(failure) is UnavailableError and code == grpc.StatusCode.UNAVAILABLE

    def _check_time(self, call: Call, pause_s: float, failure: MVFoulError) -> None:
        if (remaining := call.remaining_s()) is not None and remaining <= pause_s:
            raise failure

    def _as_ours(self, error: grpc.aio.AioRpcError) -> MVFoulError:
        code, details = error.code(), error.details() or ""
        where = f"Triton at {self.target}"
        if code == grpc.StatusCode.UNAVAILABLE and ("queue size" in details or "timeout expired" in details):
            # measured: a full queue and a request that waited too long in it have the status of a server that is gone.
            return OverloadedError(f"{where} has no room: {details.rstrip('.')}. Send the request later, with backoff.")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(f"{where} did not answer within the request's deadline.")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return UnavailableError(f"{where} cannot be reached ({details}). Send the request later.")
        if "is not healthy" in details:
            # measured: what Triton says, as INTERNAL, of a model whose process was killed; it starts no other.
            return UnavailableError(f"{where} has lost a model's process ({details}). Restart it.")
        if code == grpc.StatusCode.NOT_FOUND:
            return MissingModelError(
                f"{where} does not have this artifact ({details}). "
                "Write it with python -m serving.repository and load it."
            )
        return ServiceError(f"{where} answered {code.name}: {details}")

    def _open(self, model: str = "") -> grpc.aio.Channel:
        if model not in self._channels:
            self._channels[model] = self._connect()
        return self._channels[model]

    def _connect(self) -> grpc.aio.Channel:
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # Where the name has several addresses (a headless Service), calls go to all of them in turn.
            ("grpc.lb_policy_name", "round_robin"),
            # A server that comes back is found within a second, not within the default two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # A host that vanished without a word is noticed.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options)
        return grpc.aio.secure_channel(self.target, self._credentials, options)

    @cached_property
    def _credentials(self) -> grpc.ChannelCredentials | None:
        """The same for every channel: the files are read once, and connections can be shared."""
        if self.settings.tls_ca is None:
            return None
        files = (self.settings.tls_ca, self.settings.tls_key, self.settings.tls_cert)
        return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))


async def _has_several(target: str) -> bool:
    """Return whether more than one server stands behind the name; not while the name is unknown."""
    try:
        return len(await asyncio.to_thread(addresses_of, target)) > 1
    except UnavailableError:
        return False
