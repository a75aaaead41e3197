"""From a `TrainConfig` to the parts that it names: device, data, network, loss, optimiser."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from mvfoul.clip import ClipSpec
from mvfoul.command import available_cpus
from mvfoul.errors import ConfigError
from mvfoul.labels import VOCABULARIES
from training.cache.store import ClipStore
from training.clips import ClipReader
from training.config import Device, TrainConfig
from training.dataset import ActionSample, MultiViewDataset, collate_actions
from training.distributed import World
from training.frames import FrameRule
from training.learner import Learner, build_learner
from training.model.backbone import BACKBONES
from training.model.network import FoulNetwork
from training.optim import Schedule
from training.preemption import leave_signals_to_the_parent
from training.sampler import Order, StepSampler
from training.sampling import sampling_weights

_GIB: Final = 1 << 30
_MAX_DEFAULT_WORKERS: Final = 8
_DEFAULT_PREFETCH: Final = 2
_SETTLE_S: Final = 0.2

Progress = Callable[[str, int, int], None]
"""What is done, how many so far, how many in all."""


@dataclass
class Split:
    """One split, ready to be iterated."""

    dataset: MultiViewDataset
    loader: DataLoader[ActionSample]
    sampler: StepSampler
    _has_workers: bool = False

    def batches(self, epoch: int, start_step: int = 0) -> DataLoader[ActionSample]:
        """Return the loader, set to the order, views and random transforms of `epoch`. It yields `ActionBatch`es.

        Args:
            epoch: Counted from 0.
            start_step: Steps that are done already; their batches are not loaded.
        """
        self.dataset.set_epoch(epoch)
        self.sampler.set_epoch(epoch, start_step)
        if not self._has_workers:
            self._has_workers = True
            _settle_before_fork(self.loader.num_workers)
        return self.loader


@dataclass
class Parts:
    """Everything that a run trains with."""

    clip: ClipSpec
    train: Split
    valid: Split
    learner: Learner
    schedule: Schedule


def assemble(config: TrainConfig, progress: Progress | None = None, *, world: World | None = None) -> Parts:
    """Build the parts.

    Args:
        config: The settings.
        progress: Called while clips are preloaded.
        world: The processes of the run; one where left out.

    Raises:
        ConfigError: A setting does not go with this machine or with the data.
        AnnotationError: The data is not in the official layout, or a split is missing.
        CheckpointError: A file of weights does not fit the backbone.
    """
    world = world or World()
    device = choose_device(config.device, world)
    if config.loop.amp == "fp16" and device.type == "cpu":
        raise ConfigError("--loop.amp is 'fp16', and there is no GPU. Use --loop.amp bf16 or none.")
    facts = BACKBONES[config.model.backbone]
    clip = config.clip.spec(mean=facts.mean, std=facts.std)
    train, valid = (load_split(config, name, clip, device, world) for name in ("train", "valid"))
    # The first weights depend on the seed alone, whatever was done before.
    torch.manual_seed(config.seed)
    with world.one_per_machine_first():
        network = FoulNetwork(
            config.model.backbone,
            config.model.aggregation,
            clip=clip,
            weights=config.weights,
            dropout=config.model.dropout,
            features=config.model.features,
            view_embedding=config.model.view_embedding,
        )
    # Last of what can fail and first of what takes long.
    _preload({"train": train.dataset, "valid": valid.dataset}, config.data.preload_gib, progress)
    counts = {head: train.dataset.annotations.class_counts(head) for head in VOCABULARIES}
    learner = build_learner(config, network, counts, device, world)
    schedule = Schedule(learner.optimizer, config.schedule, epochs=config.loop.epochs, lr=config.optim.lr)
    return Parts(clip, train, valid, learner, schedule)


def load_split(
    config: TrainConfig, name: str, clip: ClipSpec, device: torch.device, world: World | None = None
) -> Split:
    """Build the data set and this rank's loader of a split; `train` is shuffled and changed at random.

    Raises:
        ConfigError, AnnotationError: See `MultiViewDataset`.
    """
    training = name == "train"
    dataset = MultiViewDataset(
        config.data.root, name, num_views=config.data.num_views if training else clip.max_views, clip=clip
    )
    dataset.seed = config.seed
    dataset.clips = clip_reader(config, clip, training=training)
    if training and (ranges := config.augment.resolved()).change_pixels:
        dataset.augmentation = ranges
    weights = sampling_weights(config.loss, dataset.records) if training else None
    order = Order(length=len(dataset), seed=config.seed, shuffle=training, weights=weights)
    accumulate = config.loop.accumulate if training else 1
    sampler = StepSampler(order, batch_size=config.loop.batch_size, world=world, accumulate=accumulate)
    workers = default_workers(world) if config.data.workers is None else config.data.workers
    loader = build_loader(
        dataset,
        sampler=sampler,
        batch_size=config.loop.batch_size,
        workers=workers,
        prefetch=config.data.prefetch,
        device=device,
    )
    return Split(dataset, loader, sampler)


def clip_reader(config: TrainConfig, clip: ClipSpec, *, training: bool) -> ClipReader:
    """Return where a split's pixels come from; only training shifts frames at random.

    Raises:
        ConfigError: The cache's folder cannot be used.
    """
    jitter = config.augment.resolved().temporal_jitter if training else 0
    rule = FrameRule(clip, jitter=jitter, replay_aware=config.data.replay_aware)
    if config.data.cache_dir is None:
        return ClipReader(rule)
    limit_bytes = int(config.data.cache_limit_gib * _GIB)
    return ClipReader(rule, store=ClipStore(config.data.cache_dir, limit_bytes=limit_bytes))


def build_loader(
    dataset: MultiViewDataset,
    *,
    sampler: StepSampler | None = None,
    batch_size: int,
    workers: int | None,
    prefetch: int | None = None,
    device: torch.device,
) -> DataLoader[ActionSample]:
    """Return a loader of `ActionBatch`es; without a sampler in the order of the annotations."""
    workers = default_workers() if workers is None else workers
    return DataLoader(
        dataset,
        batch_sampler=sampler or StepSampler(Order(length=len(dataset)), batch_size=batch_size),
        num_workers=workers,
        collate_fn=partial(collate_actions, clip=dataset.clip),
        persistent_workers=workers > 0,
        prefetch_factor=prefetch or _DEFAULT_PREFETCH if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_the_end_to_the_parent if workers else None,
    )


def default_workers(world: World | None = None) -> int:
    """Return how many processes decode clips for each rank: the CPUs are shared among the ranks of this machine."""
    return max(1, min(available_cpus() // (world or World()).local_size, _MAX_DEFAULT_WORKERS))


def choose_device(name: Device, world: World | None = None) -> torch.device:
    """Return the device; each rank of a machine has a GPU of its own.

    Raises:
        ConfigError: There is no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("--device is 'cuda', and PyTorch sees no GPU. Use --device cpu, or check nvidia-smi.")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda") if world is None or world.size == 1 else torch.device("cuda", world.local_rank)


def _preload(datasets: Mapping[str, MultiViewDataset], gib: float, progress: Progress | None) -> None:
    """Decode all clips into memory, both splits within one limit; 0 GiB decodes none."""
    left_bytes = int(gib * _GIB)
    for name, dataset in datasets.items() if left_bytes else ():
        show = None if progress is None else partial(progress, f"decoding {name}")
        dataset.preload(max_bytes=left_bytes, num_threads=available_cpus(), progress=show)
        left_bytes -= dataset.clips.preloaded_bytes


def _settle_before_fork(workers: int) -> None:
    """Let gloo's threads come to rest: the workers are forked next, and a collective operation has just ended.

    Such a thread lets go of the operation's tensors a moment after the result is there, and takes a lock of the
    interpreter for it. Before CPython 3.11.8 a process that is forked in this moment waits for that lock for ever
    (https://github.com/python/cpython/issues/112275).
    """
    if workers and sys.version_info < (3, 11, 8) and dist.is_available() and dist.is_initialized():
        time.sleep(_SETTLE_S)


def _leave_the_end_to_the_parent(_worker: int) -> None:
    leave_signals_to_the_parent()
    sys.excepthook = _quiet_when_the_parent_is_gone


def _quiet_when_the_parent_is_gone(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Report an error of a worker's helper thread, unless it only says that the training process has hung up.

    multiprocessing's thread that hands tensors over writes such a traceback when Ctrl-C comes at that moment. Errors of
    the worker itself reach the training process another way.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)
