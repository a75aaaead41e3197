"""Every setting of a training run, as frozen dataclasses; the docstring of a field is its `--help`.

Reads no file and imports no torch. A setting that would have no effect is refused, never ignored.
"""

from training.config.augment import AugmentConfig
from training.config.data import ClipConfig, DataConfig
from training.config.loop import Amp, LoopConfig, Select
from training.config.loss import LossConfig, given_weights
from training.config.metrics import MetricsConfig
from training.config.model import ModelConfig
from training.config.optim import OptimConfig, ScheduleConfig
from training.config.save import SaveConfig
from training.config.track import TrackConfig
from training.config.train import Device, RecipeName, TrainConfig, flat_settings

__all__ = [
    "Amp",
    "AugmentConfig",
    "ClipConfig",
    "DataConfig",
    "Device",
    "LoopConfig",
    "LossConfig",
    "MetricsConfig",
    "ModelConfig",
    "OptimConfig",
    "RecipeName",
    "SaveConfig",
    "ScheduleConfig",
    "Select",
    "TrackConfig",
    "TrainConfig",
    "flat_settings",
    "given_weights",
]
