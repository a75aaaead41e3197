"""A running Triton takes a new version: it has to load it and to compute golden.npz before the ensemble changes over.

In explicit mode the models are loaded by request; in poll mode Triton finds them, and this waits for it. A version that
does not load would take the ensemble with it (measured), so it must not be named there before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from mvfoul.artifact import FEATURES, VIEWS, Artifact
from mvfoul.errors import ArtifactError, MVFoulError, UnavailableError
from serving.addresses import addresses_of
from serving.golden import check_golden
from serving.repository.model_config import ANSWERS, ModelNames

_LOOK_S: Final = 0.2
_LOOK_TIMEOUT_S: Final = 10.0
"""For one question about the state of models, which takes no time."""
_DATATYPES: Final = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}


class Rollout:
    """A connection to the Triton that serves the repository; make it before the files are written."""

    def __init__(self, target: str, names: ModelNames, *, timeout_s: float) -> None:
        """Connect to `target` ("host:port" of Triton's gRPC).

        Raises:
            UnavailableError: No Triton answers there.
        """
        from tritonclient import grpc as triton

        self._triton = triton
        self._client = triton.InferenceServerClient(target)
        self._target, self._names, self._timeout_s = target, names, timeout_s
        self._failed_before = self._failures()

    def try_version(self, artifact: Artifact) -> None:
        """Load encoder and head of a version that is in the repository and compare their answers to golden.npz.

        Raises:
            ArtifactError: Triton cannot load them, or they compute something else.
            UnavailableError: They are not ready in time.
        """
        for model in (self._names.encoder, self._names.head):
            self._load(model, artifact)
        golden = artifact.golden()
        features = self._ask(self._names.encoder, artifact, VIEWS, golden[VIEWS], (FEATURES,))[FEATURES]
        answers = self._ask(self._names.head, artifact, FEATURES, features, ANSWERS)
        check_golden(artifact, golden, answers, engine=f"Triton at {self._target}")

    def change_over(self, artifact: Artifact) -> None:
        """Make the ensemble answer with a version; raises as `try_version` does."""
        self._load(self._names.ensemble, artifact)

    def take_back(self) -> None:
        """Make Triton read the ensemble's former configuration; in poll mode it does so by itself."""
        self._request_load(self._names.ensemble)

    def forget_removed(self) -> None:
        """Make Triton unload versions whose folders were removed; in poll mode it notices by itself."""
        for model in (self._names.encoder, self._names.head):
            self._request_load(model)

    def _load(self, model: str, artifact: Artifact) -> None:
        if refusal := self._request_load(model):
            raise ArtifactError(f"Triton at {self._target} cannot load {model}: {refusal}")
        version = str(artifact.model_version)
        deadline = time.monotonic() + self._timeout_s
        while not self._is_ready(model, version):
            failure = self._failures().get((model, version), "")
            if failure and failure != self._failed_before.get((model, version)):
                raise ArtifactError(f"Triton at {self._target} cannot load {model}: {failure}")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Triton at {self._target} has not made version {version} of {model} ready within "
                    f"{self._timeout_s:g} s. Does it serve this repository, in mode poll or explicit?"
                )
            time.sleep(_LOOK_S)

    def _request_load(self, model: str) -> str:
        """Return why Triton refuses to load; empty if it has loaded, or polls and does so by itself."""
        try:
            self._client.load_model(model, client_timeout=self._timeout_s)
        except self._triton.InferenceServerException as error:
            if "polling is enabled" in str(error.message()):
                return ""
            if _is_absence(error):
                self._absent(error)
            return str(error.message()).strip()
        return ""

    def _is_ready(self, model: str, version: str) -> bool:
        try:
            return bool(self._client.is_model_ready(model, version, client_timeout=self._look_s))
        except self._triton.InferenceServerException as error:
            self._absent(error)

    def _failures(self) -> dict[tuple[str, str], str]:
        """Return why versions of models could not be loaded, as Triton remembers it."""
        try:
            models = self._client.get_model_repository_index(client_timeout=self._look_s).models
        except self._triton.InferenceServerException as error:
            self._absent(error)
        return {(m.name, m.version): m.reason.strip() for m in models if m.state == "UNAVAILABLE" and _failed(m.reason)}

    def _ask(
        self, model: str, artifact: Artifact, name: str, values: NDArray[Any], outputs: tuple[str, ...]
    ) -> dict[str, NDArray[np.float32]]:
        tensor = self._triton.InferInput(name, list(values.shape), _DATATYPES[values.dtype.name])
        tensor.set_data_from_numpy(values)
        try:
            result = self._client.infer(
                model, [tensor], model_version=str(artifact.model_version), client_timeout=self._timeout_s
            )
        except self._triton.InferenceServerException as error:
            if _is_absence(error):
                self._absent(error)
            raise ArtifactError(f"Triton at {self._target}: {model} fails on golden.npz: {error.message()}") from error
        return {output: result.as_numpy(output) for output in outputs}

    @property
    def _look_s(self) -> float:
        return min(_LOOK_TIMEOUT_S, self._timeout_s)

    def _absent(self, error: Any) -> NoReturn:
        raise UnavailableError(
            f"--triton {self._target} does not answer ({error.message()}). Is it running, and not overloaded?"
        ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._client.close()


def _is_absence(error: Any) -> bool:
    """Say whether there was no answer, as opposed to one that says no."""
    return str(error.status()).removeprefix("StatusCode.") in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


def _failed(reason: str) -> bool:
    return reason not in ("", "unloaded")


class Rollouts:
    """The same of every Triton behind a name: each looks at the repository by itself, at its own time."""

    def __init__(self, target: str, names: ModelNames, *, timeout_s: float) -> None:
        """Connect to all addresses of `target` ("host:port").

        Raises:
            UnavailableError: The name has no address, or no Triton answers at one.
        """
        with ExitStack() as stack:
            self._each = [
                stack.enter_context(Rollout(address, names, timeout_s=timeout_s)) for address in addresses_of(target)
            ]
            self._stack = stack.pop_all()

    def try_version(self, artifact: Artifact) -> None:
        """See `Rollout`; raises where any of them does."""
        for one in self._each:
            one.try_version(artifact)

    def change_over(self, artifact: Artifact) -> None:
        """See `Rollout`; raises where any of them does."""
        for one in self._each:
            one.change_over(artifact)

    def take_back(self) -> None:
        """See `Rollout`; what one of them cannot do keeps no other from it."""
        self._all(Rollout.take_back)

    def forget_removed(self) -> None:
        """See `Rollout`; what one of them cannot do keeps no other from it."""
        self._all(Rollout.forget_removed)

    def _all(self, do: Callable[[Rollout], None]) -> None:
        failures = []
        for one in self._each:
            try:
                do(one)
            except MVFoulError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()
