"""The encoder in 8-bit integers, for CPUs: static quantisation of its ONNX graph, calibrated on clips.

Weights are int8 with a scale per output channel; activations are uint8 with a scale per tensor, from the values seen on
the calibration clips. Between them the graph says float32, as pairs of QuantizeLinear and DequantizeLinear (QDQ), which
each engine fuses into its own integer kernels. Inputs stay uint8 pixels, features leave as float32; the head is not
touched.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from export.batches import ViewBatch, generated_batches, held_out_batches
from export.config import ExportConfig
from export.report import Progress, size_of
from mvfoul.artifact import VIEWS
from mvfoul.clip import ClipSpec
from mvfoul.errors import ConfigError

QUANTISED_OPERATORS: Final = ("Conv", "MatMul", "Gemm")
"""Products of activations and weights: nearly all of the time. measured: what lies between them gains nothing."""

CALIBRATION_ACTIONS: Final = 16
"""Evenly spaced over the calibration split."""


class _Clips(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds the calibration one view at a time, so that its memory is that of one view."""

    def __init__(self, views: Sequence[NDArray[np.uint8]]) -> None:
        self._feeds = iter([{VIEWS: view[None]} for batch in views for view in batch])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next view; None at the end."""
        return next(self._feeds, None)


def quantise_encoder(encoder: onnx.ModelProto, views: Sequence[NDArray[np.uint8]]) -> onnx.ModelProto:
    """Return the encoder in 8-bit integers.

    Args:
        encoder: In float32.
        views: Clips as the encoder will see them, uint8 `[N, 3, T, H, W]` each.

    Raises:
        ConfigError: There are no clips.
    """
    if not sum(len(batch) for batch in views):
        raise ConfigError("--int8 needs clips to calibrate on; there is none.")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(encoder, source)
        quantize_static(
            source,
            target,
            _Clips(views),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED_OPERATORS),
            nodes_to_exclude=products_of_activations(encoder),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(target)


def products_of_activations(encoder: onnx.ModelProto) -> list[str]:
    """Return the names of products that have no weight in them, as queries by keys.

    They stay float32: softmax magnifies an error of their answers, and both factors would lose digits.
    """
    constants = {tensor.name for tensor in encoder.graph.initializer}
    products = [node for node in encoder.graph.node if node.op_type in {"MatMul", "Gemm"}]
    return [node.name for node in products if constants.isdisjoint(node.input)]


def quantise_file(config: ExportConfig, clip: ClipSpec, path: Path, progress: Progress) -> None:
    """Replace a float32 encoder on disk by one in 8-bit integers, calibrated on clips of `config.data.root`.

    Raises:
        AnnotationError, ConfigError: The data set has no clip to calibrate on.
    """
    with progress.step(f"{path.name} in int8") as facts:
        batches = calibration_batches(config, clip)
        quantised = quantise_encoder(onnx.load(path), [batch.views for batch in batches])
        path.write_bytes(quantised.SerializeToString(deterministic=True))
        facts += [size_of(path), f"calibrated on {sum(len(batch.views) for batch in batches)} clips"]
    if config.data.root is None:
        progress.say(
            "  WARNING: calibrated on generated clips, which real ones do not resemble; give real ones: --data.root DIR"
        )


def calibration_batches(config: ExportConfig, clip: ClipSpec) -> list[ViewBatch]:
    """Return the generated clips, and those of the calibration split where there is a data set.

    measured, mc3_18 of the demo: calibrated on real clips alone, views of noise or one grey value leave the ranges (the
    worst cosine of logits is 0.71); with both it is 0.998, and real clips lose nothing (0.9999 either way).

    Raises:
        AnnotationError, ConfigError: See `held_out_batches`.
    """
    batches = generated_batches(clip)
    if config.data.root is None:
        return batches
    actions, _ = held_out_batches(config.data.root, config.calibration_split, clip, max_actions=CALIBRATION_ACTIONS)
    return batches + actions


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice to optimise the graph first; exported graphs are."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
