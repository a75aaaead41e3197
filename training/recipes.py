"""Named settings: functions that return a full `TrainConfig`.

From Python, change what you like with `dataclasses.replace`; on the command line, every flag after `--recipe NAME`
overrides one of its settings. None of the expected results is measured on SoccerNet-MVFoul by this project yet; where
a number is given, it says whose it is. `tests/training/golden/recipe_*.json` are the settings in full.

Times are estimates from arithmetic: an epoch has about 5,300 training views (2,319 actions of 2 to 4), a view of MViT
V2 small costs 64 billion multiply-adds forward (torchvision's figure) and three times that in training, so an epoch is
2.0 PFLOP and its validation a sixth of that. The batch size counts the actions of a step over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import tyro

from mvfoul.command import requested_recipe
from training.config import (
    AugmentConfig,
    ClipConfig,
    DataConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RecipeName,
    ScheduleConfig,
    TrainConfig,
)

PROG: Final = "python -m training"

# What `j % (25 / 12) < 1` keeps of the frames 58 to 91 in float arithmetic, j counting from the first; see
# `mvfoul.clip` for why they are written out. Exact fractions would give 83 in place of 84.
_MVIT_2024_FRAMES: Final = (58, 61, 63, 65, 67, 69, 71, 73, 75, 77, 79, 81, 84, 86, 88, 90)


def two_second(root: Path) -> TrainConfig:
    """Two seconds around the contact, the whole picture; the default, with the settings that the user's guide asks for.

    AdamW at 1e-4, halved every 10 epochs; stops 10 epochs after the best; the guide's augmentation.

    Result: not measured by anybody that we know of. Time: by estimate half an
    hour on a GPU that sustains 100 TFLOP/s at bf16, if the CPUs decode 200 clips/s. Hardware: one GPU of 24 GB or more,
    by estimate.
    """
    return TrainConfig(
        recipe="two-second",
        data=DataConfig(root=root),
        augment=AugmentConfig(preset="guide"),
        optim=OptimConfig(name="adamw", lr=1e-4),
        schedule=ScheduleConfig(name="step", step_size=10, gamma=0.5),
        loop=LoopConfig(epochs=50, batch_size=8, patience=10, amp="bf16"),
    )


def vars_2023(root: Path) -> TrainConfig:
    """What VARS was trained with (Held et al., CVPRW 2023): 16 frames of 1 s, the 400 Kinetics answers as features.

    Differs from the original: a class weight counts in a batch of one too (`training.loss`); AdamW's eps is torch's
    1e-8, not 1e-7; a view's random changes are drawn by our generator. For its published weights see
    `python -m training.legacy`.

    Result: 37.0 on the challenge split is the original authors' figure for their baseline; not measured here.
    Time: by estimate 3 hours on a GPU that sustains 15 TFLOP/s in float32. Hardware: one GPU of 16 GB or more, by
    estimate.
    """
    return TrainConfig(
        recipe="vars-2023",
        data=DataConfig(root=root),
        clip=ClipConfig(preset="vars-2023"),
        model=ModelConfig(backbone="mvit_v2_s", features="kinetics-logits", aggregation="attention"),
        augment=AugmentConfig(preset="original"),
        optim=OptimConfig(name="adamw", lr=1e-4, weight_decay=1e-3),
        schedule=ScheduleConfig(name="step", step_size=3, gamma=0.1),
        loop=LoopConfig(epochs=60, batch_size=2, patience=0),
    )


def mvit_2024(root: Path) -> TrainConfig:
    """The best published plain MViT V2 small with attention: 34 frames around the contact at 12 fps.

    Published are frames 58 to 92 at 12 fps, 5 views, learning rate 5e-5, StepLR 3/0.3, weight decay 1e-3 and the
    weighted loss. assumption: the rest (features, centre crop, augmentation, batch size) is as in the original VARS,
    whose flags these are.

    Result: 43.7 on the test split is its authors' figure; not measured here. Time: by estimate 3 hours on a GPU that
    sustains 15 TFLOP/s in float32, less where it stops early. Hardware: one GPU of 16 GB or more, by estimate.
    """
    return TrainConfig(
        recipe="mvit-2024",
        data=DataConfig(root=root, num_views=5),
        augment=AugmentConfig(preset="original"),
        clip=ClipConfig(preset="custom", frames=_MVIT_2024_FRAMES, resize="center_crop"),
        model=ModelConfig(backbone="mvit_v2_s", features="kinetics-logits", aggregation="attention"),
        loss=LossConfig(action_weights="inverse", offence_severity_weights="inverse"),
        optim=OptimConfig(name="adamw", lr=5e-5, weight_decay=1e-3),
        schedule=ScheduleConfig(name="step", step_size=3, gamma=0.3),
        loop=LoopConfig(epochs=60, batch_size=2, patience=10),
    )


def cpu_demo(root: Path) -> TrainConfig:
    """A small network from scratch on small clips, for the data of `python -m training.synthetic`.

    Pictures of 16 px are enough for its drifting patterns, and make an epoch take seconds. No flip: it changes labels.

    Result: ours, on synthetic data: at least 90 % balanced accuracy on both heads of the held-out split; `make demo`
    prints it. How fast it starts to learn depends on the seed: 10 epochs were enough for one and not for another, 16
    for both.
    Time: 5 minutes. Hardware: 2 CPU cores.
    """
    return TrainConfig(
        recipe="cpu-demo",
        weights="none",
        device="cpu",
        data=DataConfig(root=root, workers=0, preload_gib=2.0),
        clip=ClipConfig(num_frames=8, size_px=16),
        model=ModelConfig(backbone="mc3_18", aggregation="mean"),
        loss=LossConfig(action_weights="none", offence_severity_weights="none"),
        optim=OptimConfig(name="adamw", lr=5e-4, weight_decay=1e-3),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
        loop=LoopConfig(epochs=16, batch_size=8, patience=0),
    )


RECIPES: Final[Mapping[RecipeName, Callable[[Path], TrainConfig]]] = MappingProxyType(
    {"two-second": two_second, "vars-2023": vars_2023, "mvit-2024": mvit_2024, "cpu-demo": cpu_demo}
)


def parse_config(args: Sequence[str]) -> TrainConfig:
    """Read the flags of `python -m training`: a recipe, and what overrides it.

    Prints help or what is wrong with the flags and exits, as command lines do.
    """
    # The recipe is read first; tyro then reads everything, it included, and refuses a name that is none.
    default = RECIPES.get(requested_recipe(args, default="two-second"), two_second)(tyro.MISSING)  # type: ignore[call-overload]
    config: TrainConfig = tyro.cli(TrainConfig, default=default, args=args, prog=PROG)
    return config
