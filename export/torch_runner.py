"""PyTorch as a runner: the reference that everything else is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.runners import Tensors, graph_specs
from mvfoul.artifact import (
    ACTION_LOGITS,
    ACTION_PROBABILITIES,
    FEATURES,
    OFFENCE_SEVERITY_LOGITS,
    OFFENCE_SEVERITY_PROBABILITIES,
    VIEW_WEIGHTS,
    GraphSpec,
)
from mvfoul.prediction import softmax
from training.model.network import FoulNetwork


class TorchRunner:
    """The checkpoint's network in PyTorch. Probabilities are computed by `mvfoul.prediction`, not by torch."""

    def __init__(
        self, network: FoulNetwork, temperatures: Mapping[str, float], *, compiled: bool = False, half: bool = False
    ) -> None:
        """Take a network where it is, on the CPU or on a GPU.

        Args:
            network: Answers in evaluation mode.
            temperatures: By head.
            compiled: Whether the encoder goes through torch.compile, once for every N.
            half: Whether the encoder computes in float16, under autocast; the reference of parity is float32.
        """
        self._network = network.eval()
        self._temperatures = temperatures
        self._device = next(network.parameters()).device
        self._encode = torch.compile(network.encode, dynamic=False) if compiled else network.encode
        self._compiled = compiled
        self._half = half

    @property
    def name(self) -> str:
        """See `Runner`."""
        compiled = ", torch.compile" if self._compiled else ""
        device = "" if self._device.type == "cpu" else f", {torch.cuda.get_device_name(self._device)}"
        half = ", float16" if self._half else ""
        return f"PyTorch {torch.__version__}{half}{compiled}{device}"

    @property
    def graphs(self) -> tuple[GraphSpec, GraphSpec]:
        """What the artifact has to promise for this network."""
        return graph_specs(self._network.clip, self._network.feature_dim)

    def encode(self, views: NDArray[np.uint8]) -> Tensors:
        """See `Runner`."""
        half = torch.autocast(self._device.type, torch.float16, enabled=self._half)
        with torch.inference_mode(), half:
            return {FEATURES: self._encode(_aligned(views).to(self._device)).float().cpu().numpy()}

    def classify(self, features: NDArray[np.float32]) -> Tensors:
        """See `Runner`."""
        view_mask = torch.ones(1, len(features), dtype=torch.bool, device=self._device)
        with torch.inference_mode():
            logits = self._network.classify(_aligned(features).to(self._device).unsqueeze(0), view_mask)
        action, severity, weights = (tensor.squeeze(0).cpu().numpy() for tensor in logits)
        return {
            ACTION_LOGITS: action,
            OFFENCE_SEVERITY_LOGITS: severity,
            ACTION_PROBABILITIES: softmax(action, temperature=self._temperatures["action"]),
            OFFENCE_SEVERITY_PROBABILITIES: softmax(severity, temperature=self._temperatures["offence_severity"]),
            VIEW_WEIGHTS: weights,
        }


def _aligned(array: NDArray[Any]) -> Tensor:
    """Copy to memory of torch's own: MKL sums in an order that depends on the address, and numpy's are arbitrary."""
    return torch.from_numpy(array).clone()
