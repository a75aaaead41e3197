"""A running Triton takes a new version: it has to load it and to compute golden.npz before the ensemble changes over.

In explicit mode the models are loaded by request; in poll mode Triton finds them, and this waits for it. A version that
does not load would take the ensemble with it (measured), so it must not be named there before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import FEATURES, VIEWS, Artifact
from mvfoul.errors import ArtifactError, UnavailableError
from serving.golden import check_golden
from serving.repository.model_config import ANSWERS, ModelNames

_LOOK_S: Final = 0.2
_DATATYPES: Final = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}


class Rollout:
    """A connection to the Triton that serves the repository."""

    def __init__(self, target: str, names: ModelNames, artifact: Artifact, *, timeout_s: float) -> None:
        """Connect to `target` ("host:port" of Triton's gRPC).

        Raises:
            UnavailableError: No Triton is ready to talk there.
        """
        from tritonclient import grpc as triton

        self._triton = triton
        self._client = triton.InferenceServerClient(target)
        self._target, self._names, self._artifact, self._timeout_s = target, names, artifact, timeout_s
        try:
            self._client.is_server_live(client_timeout=timeout_s)
        except triton.InferenceServerException as error:
            raise UnavailableError(f"--triton {target} does not answer ({error.message()}). Is it running?") from error

    def try_version(self) -> None:
        """Load encoder and head of the new version and compare their answers to golden.npz.

        Raises:
            ArtifactError: Triton cannot load them, or they compute something else.
            UnavailableError: They are not ready in time.
        """
        for model in (self._names.encoder, self._names.head):
            self._load(model)
        golden = self._artifact.golden()
        features = self._ask(self._names.encoder, VIEWS, golden[VIEWS], (FEATURES,))[FEATURES]
        answers = self._ask(self._names.head, FEATURES, features, ANSWERS)
        check_golden(self._artifact, golden, answers, engine=f"Triton at {self._target}")

    def change_over(self) -> None:
        """Make the ensemble answer with the new version; raises as `try_version` does."""
        self._load(self._names.ensemble)

    def forget_version(self) -> None:
        """Make Triton forget a version whose folders were removed; in poll mode it notices by itself."""
        for model in (self._names.encoder, self._names.head):
            self._request_load(model)

    def _load(self, model: str) -> None:
        if refusal := self._request_load(model):
            raise ArtifactError(f"Triton at {self._target} cannot load {model}: {refusal}")
        version = str(self._artifact.model_version)
        self._wait(lambda: bool(self._client.is_model_ready(model, version)), f"version {version} of {model}")

    def _request_load(self, model: str) -> str:
        """Return why Triton refuses to load; empty if it has loaded, or polls and does so by itself."""
        try:
            self._client.load_model(model, client_timeout=self._timeout_s)
        except self._triton.InferenceServerException as error:
            return "" if "polling is enabled" in error.message() else str(error.message()).strip()
        return ""

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not ready():
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Triton at {self._target} has not made {what} ready within {self._timeout_s:g} s; its log says "
                    "why. Does it serve this repository, in mode poll or explicit?"
                )
            time.sleep(_LOOK_S)

    def _ask(
        self, model: str, name: str, values: NDArray[Any], outputs: tuple[str, ...]
    ) -> dict[str, NDArray[np.float32]]:
        tensor = self._triton.InferInput(name, list(values.shape), _DATATYPES[values.dtype.name])
        tensor.set_data_from_numpy(values)
        try:
            result = self._client.infer(
                model,
                [tensor],
                model_version=str(self._artifact.model_version),
                client_timeout=self._timeout_s,
            )
        except self._triton.InferenceServerException as error:
            raise ArtifactError(f"Triton at {self._target}: {model} fails on golden.npz: {error.message()}") from error
        return {output: result.as_numpy(output) for output in outputs}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._client.close()
