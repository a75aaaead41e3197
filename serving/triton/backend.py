"""`Backend` over Triton: the encoder's batcher takes views of all clients together, the head gets one action.

Every call names the model version of its artifact (`mvfoul.artifact.Artifact.model_version`), which Triton has only if
exactly this artifact was put into its repository: an answer of another one is impossible.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from numpy.typing import NDArray

from mvfoul.artifact import (
    ACTION_PROBABILITIES,
    FEATURES,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    VIEWS,
    Artifact,
)
from mvfoul.errors import ServiceError
from serving.backend import Scored, joined, no_features
from serving.call import PRIORITIES, Call
from serving.graphs import Scores
from serving.triton.connection import Connection, MissingModelError
from serving.triton.regions import Regions

_SCORES: Final = (ACTION_PROBABILITIES, OFFENCE_SEVERITY_PROBABILITIES, VIEW_WEIGHTS)
_LOAD_AGAIN_S: Final = 5.0
"""Between two attempts to have missing models loaded, however many requests miss them."""

log = logging.getLogger("mvfoul.serving")


class TritonBackend:
    """One artifact in Triton. Several share a connection."""

    def __init__(self, artifact: Artifact, connection: Connection) -> None:
        settings = connection.settings
        self._artifact = artifact
        self._connection = connection
        self._depth = 0
        self._loading: asyncio.Task[None] | None = None
        self._load_after = 0.0
        clip = artifact.manifest.clip
        size = clip.max_views * math.prod(clip.view_shape)
        self._regions = Regions(connection, slots=settings.slots, size=size) if settings.shared_memory else None

    @property
    def name(self) -> str:
        """See `Backend`."""
        return f"Triton at {self._connection.target}"

    @property
    def depth(self) -> int:
        """See `Backend`."""
        return self._depth

    async def score(self, views: NDArray[np.uint8], earlier: NDArray[np.float32] | None, call: Call) -> Scored:
        """See `Backend`."""
        # No stage queue: waiting for a batch is a part of encode here, and only Triton's own metrics tell them apart.
        self._depth += 1
        try:
            with call.stage("encode"):
                features = await self._encode(views, call) if len(views) else no_features(earlier)
            with call.stage("head"):
                return Scored(features, await self._classify(joined(earlier, features), call))
        except MissingModelError:
            self._load_soon()
            raise
        finally:
            self._depth -= 1

    async def load(self) -> None:
        """Make Triton load the models from its repository, encoder and head before the ensemble that uses them.

        Raises:
            ServiceError: It refuses, with its reason.
        """
        name = self._connection.settings.name
        for model in (f"{name}_encoder", f"{name}_head", name):
            await self._connection.load(model)

    async def aclose(self) -> None:
        """See `Backend`. The connection stays: another artifact may use it."""
        if self._loading is not None:
            self._loading.cancel()
        if self._regions is not None:
            await self._regions.aclose()

    def _load_soon(self) -> None:
        """In explicit mode, have the models loaded in the background: at the start, and by a Triton that is new.

        The request that missed them is refused, and so is the self-test, until one finds them.
        """
        busy = self._loading is not None and not self._loading.done()
        if self._connection.settings.explicit and not busy and time.monotonic() >= self._load_after:
            self._loading = asyncio.get_running_loop().create_task(self._load_or_say_why_not())

    async def _load_or_say_why_not(self) -> None:
        try:
            await self.load()
            log.info("%s has loaded artifact %s", self.name, self._artifact.version)
        except ServiceError as error:
            log.warning("%s does not load artifact %s: %s", self.name, self._artifact.version, error)
        finally:
            self._load_after = time.monotonic() + _LOAD_AGAIN_S

    async def _encode(self, views: NDArray[np.uint8], call: Call) -> NDArray[np.float32]:
        request = self._request("encoder", VIEWS, "UINT8", views.shape, (FEATURES,), call)
        if self._regions is None:
            request.raw_input_contents.append(np.ascontiguousarray(views).tobytes())
            (features,) = await self._infer(request, (FEATURES,), call)
            return features
        return await self._encode_shared(request, views, call, self._regions)

    async def _encode_shared(
        self, request: pb.ModelInferRequest, views: NDArray[np.uint8], call: Call, regions: Regions
    ) -> NDArray[np.float32]:
        for last in (False, True):
            try:
                async with regions.borrowed(views) as region:
                    _share(request, region, views.nbytes)
                    (features,) = await self._infer(request, (FEATURES,), call)
                    return features
            except _UnknownRegionError:
                # A Triton that was restarted knows no region: they are registered anew, once.
                if last:
                    raise
                regions.forget()
        raise AssertionError("unreachable")

    async def _classify(self, features: NDArray[np.float32], call: Call) -> Scores:
        request = self._request("head", FEATURES, "FP32", features.shape, _SCORES, call)
        request.raw_input_contents.append(np.ascontiguousarray(features, dtype="<f4").tobytes())
        return Scores(*await self._infer(request, _SCORES, call))

    def _request(
        self, part: str, tensor: str, datatype: str, shape: Sequence[int], outputs: Sequence[str], call: Call
    ) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(
            model_name=f"{self._connection.settings.name}_{part}",
            model_version=str(self._artifact.model_version),
            id=call.request_id,
            inputs=[pb.ModelInferRequest.InferInputTensor(name=tensor, datatype=datatype, shape=shape)],
            outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        )
        if part == "encoder":  # the head has no queue with priorities
            # To Triton 0, or a level that it does not have, is the default level: live.
            request.parameters["priority"].int64_param = min(max(call.priority, PRIORITIES[0]), PRIORITIES[-1])
            if (remaining := call.remaining_s()) is not None:
                request.parameters["timeout"].int64_param = max(1, int(remaining * 1e6))
        return request

    async def _infer(
        self, request: pb.ModelInferRequest, outputs: Sequence[str], call: Call
    ) -> list[NDArray[np.float32]]:
        try:
            response = await self._connection.infer(request, call)
        except ServiceError as error:
            if "shared memory region" in str(error):
                raise _UnknownRegionError(str(error)) from error
            raise
        found = {
            tensor.name: np.frombuffer(raw, dtype="<f4").reshape(tensor.shape)
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        if missing := [name for name in outputs if name not in found]:
            raise ServiceError(f"{self.name}: {request.model_name} answered without {missing}.")
        return [found[name] for name in outputs]


class _UnknownRegionError(ServiceError):
    """Triton does not know a region of shared memory that was registered once."""


def _share(request: pb.ModelInferRequest, region: str, size: int) -> None:
    parameters: Any = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
