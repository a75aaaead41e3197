"""KServe's data plane, with this server's rules: one model, known versions, readiness, no loading by request."""

from __future__ import annotations

from typing import Any, NoReturn

from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from mvfoul.errors import RequestError, UnknownModelError
from serving.model import FoulModel


class FoulDataPlane(DataPlane):  # type: ignore[misc]  # kserve has no types
    """What both protocols ask."""

    def __init__(self, model: FoulModel, registry: ModelRepository) -> None:
        super().__init__(model_registry=registry)
        self._model = model

    def metadata(self) -> dict[str, Any]:
        """Return the server's name and version; KServe would announce an extension that is closed here."""
        return {**super().metadata(), "extensions": ["binary_tensor_data"]}

    def check_model(self, name: str, version: str = "") -> FoulModel:
        """Return the model.

        Raises:
            UnknownModelError: Another name, or a version that no artifact on duty has.
        """
        if name != self._model.name:
            raise UnknownModelError(f"model {name[:64]!r} is not served here; this server has {self._model.name!r}.")
        if version:
            self._model.core.router.named(version)
        return self._model

    def get_model_from_registry(self, name: str) -> FoulModel:
        """Return the model by name, for metadata."""
        return self.check_model(name)

    async def get_model(self, name: str) -> FoulModel:
        """Return the model for an inference.

        Raises:
            UnavailableError: See `FoulModel.check_accepting`.
        """
        model = self.check_model(name)
        model.check_accepting()
        return model

    async def ready(self) -> bool:
        """Return whether the server answers requests: after the self-test, until it is told to stop."""
        return self._model.healthy

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:  # noqa: ARG002
        """Return whether the model answers requests."""
        return self.check_model(model_name).healthy

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Return names, datatypes and shapes of inputs and outputs."""
        metadata: dict[str, Any] = await super().model_metadata(model_name)
        return {**metadata, "versions": self._model.core.router.versions, "platform": self._model.platform}


class ClosedRepository(ModelRepositoryExtension):  # type: ignore[misc]
    """Refuses to load and unload by request: anybody who reaches the port could stop the service."""

    async def load(self, model_name: str) -> NoReturn:
        """Refuse."""
        raise RequestError(
            f"loading {model_name[:64]!r} by request is off; restart the server with another --artifact."
        )

    async def unload(self, model_name: str) -> NoReturn:
        """Refuse."""
        raise RequestError(f"unloading {model_name[:64]!r} by request is off; stop the server with SIGTERM.")
