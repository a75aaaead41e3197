"""Which actions each step of each rank gets.

    order of the epoch          from (seed, epoch) alone, whatever the ranks and workers
    batch of step s             order[s * B : (s + 1) * B], over all ranks
    share of rank r             every world-size-th of it, from r on
    micro-batches               the share in `accumulate` parts that differ by one action at most

So the same settings train on the same batches with any number of processes, and a step of an epoch can be named by its
number: an interrupted epoch goes on at `start_step` without loading what came before. Every rank yields the same number
of micro-batches: where a batch has too few actions, some are empty lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

from mvfoul.errors import ConfigError
from training.distributed import World

Draw = int | tuple[int, int]
"""The index of an action, or (index, how many times it was drawn before in this epoch)."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order an epoch goes through a split."""

    length: int
    """Actions of the split."""
    seed: int = 0
    shuffle: bool = False
    weights: Sequence[float] | None = None
    """One per action: as many actions as there are are drawn with these probabilities, with replacement."""

    def of(self, epoch: int) -> list[Draw]:
        """Return the actions of an epoch, in order."""
        if self.weights is None and not self.shuffle:
            return list(range(self.length))
        state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        if self.weights is None:
            return list(torch.randperm(self.length, generator=generator).tolist())
        weights = torch.tensor(self.weights, dtype=torch.float64)
        drawn = torch.multinomial(weights, self.length, replacement=True, generator=generator)
        return _numbered(drawn.tolist())


class StepSampler(Sampler[list[Draw]]):
    """The micro-batches of one rank, for a `DataLoader`'s `batch_sampler`. Call `set_epoch` before each epoch."""

    def __init__(self, order: Order, *, batch_size: int, world: World | None = None, accumulate: int = 1) -> None:
        """Cut the order into steps.

        Args:
            order: Of the split.
            batch_size: B, actions per step over all ranks.
            world: The ranks; one process where left out.
            accumulate: Micro-batches per step and rank.

        Raises:
            ConfigError: A batch is too small to give each rank's micro-batches one action.
        """
        self._order = order
        self._batch_size = batch_size
        self._world = world or World()
        self._accumulate = accumulate
        self._epoch = 0
        self._start_step = 0
        if batch_size < self._world.size * accumulate:
            raise ConfigError(
                f"--loop.batch-size is {batch_size}, the actions of one step over all processes; with "
                f"{self._world.size} processes and --loop.accumulate {accumulate} some would never get an action. Use "
                f"--loop.batch-size {self._world.size * accumulate} or more, fewer processes, or a lower "
                "--loop.accumulate."
            )

    @property
    def steps(self) -> int:
        """Steps of a whole epoch; the last may have a smaller batch."""
        return -(-self._order.length // self._batch_size)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch, counted from 0, and how many of its steps are done already."""
        self._epoch, self._start_step = epoch, start_step

    def __len__(self) -> int:
        """Micro-batches from the start step to the end of the epoch."""
        return max(self.steps - self._start_step, 0) * self._accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield this rank's micro-batches, `accumulate` per step."""
        order = self._order.of(self._epoch)
        for step in range(self._start_step, self.steps):
            batch = order[step * self._batch_size : (step + 1) * self._batch_size]
            share = batch[self._world.rank :: self._world.size]
            for part in range(self._accumulate):
                yield share[len(share) * part // self._accumulate : len(share) * (part + 1) // self._accumulate]


def _numbered(indices: Sequence[int]) -> list[Draw]:
    """Give repeated indices a number, so that each draw gets random views and changes of its own."""
    seen: dict[int, int] = {}
    draws: list[Draw] = []
    for index in indices:
        before = seen.get(index, 0)
        draws.append((index, before) if before else index)
        seen[index] = before + 1
    return draws
