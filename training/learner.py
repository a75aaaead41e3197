"""What a step of training needs, built from the settings: network, loss, optimiser, precision, processes.

With several processes the network is called through torch's DistributedDataParallel, which adds up gradients while
they are still being computed; `network` stays the bare one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mvfoul.errors import DivergedError
from mvfoul.labels import Head
from training.augment.pixels import augment
from training.config import TrainConfig
from training.dataset import ActionBatch
from training.distributed import World
from training.ema import MovingAverage
from training.loss import FoulLoss, build_loss
from training.model.execution import checkpoint_blocks, compile_backbone, synchronise_norms, use_channels_last
from training.model.network import FoulLogits, FoulNetwork
from training.optim import build_optimizer

_AMP_DTYPES: Final = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Shared(nn.Module):
    """The network as DistributedDataParallel calls it: a rank without an action takes part all the same."""

    def __init__(self, network: FoulNetwork, *, synchronised: bool) -> None:
        super().__init__()
        self.network = network
        self._synchronised = synchronised

    def forward(self, views: Tensor, view_counts: Tensor, view_kinds: Tensor) -> FoulLogits | Tensor:
        if len(view_counts):
            logits: FoulLogits = self.network(views, view_counts, view_kinds)
            return logits
        learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        # A zero that depends on every parameter: its gradients are what this rank adds to the sum.
        nothing = torch.stack([(parameter * 0).sum() for parameter in learning]).sum()
        # Synchronised batch norms of the other ranks wait for statistics, of nothing.
        return nothing + self.network.encode(views).sum() * 0 if self._synchronised else nothing


@dataclass
class Learner:
    """What one step of training needs."""

    network: FoulNetwork
    loss: FoulLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Disabled unless the precision is fp16."""
    device: torch.device
    amp: torch.dtype | None = None
    """Of the backbone; None is float32."""
    max_grad_norm: float = 0.0
    world: World = field(default_factory=World)
    """The processes that share each step."""
    seed: int = 0
    """With epoch, step and rank it decides what dropout draws."""
    accumulate: int = 1
    """Micro-batches per step."""
    freeze_epochs: int = 0
    """First epochs in which the backbone does not change."""
    ema: MovingAverage | None = None
    synchronised: bool = False
    """Whether batch norms exchange statistics with the other ranks."""
    actions_seen: int = field(default=0, init=False)
    """Labelled ones that this process's steps learnt from, over all ranks."""
    skipped_steps: int = field(default=0, init=False)
    """Steps of this process that changed nothing, because their gradients were no numbers."""
    _shared: DistributedDataParallel | None = field(default=None, init=False, repr=False)
    _frozen: bool = field(default=False, init=False, repr=False)

    @property
    def network_to_publish(self) -> FoulNetwork:
        """The network to measure and to export: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.network

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the network runs."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)

    def start_epoch(self, epoch: int) -> None:
        """Set training mode; freeze the backbone, or let it learn. `epoch` counts from 0."""
        frozen = epoch < self.freeze_epochs
        self.network.train()
        self.loss.train()
        self.network.backbone.requires_grad_(not frozen)
        if frozen:
            self.network.backbone.eval()
        if self.world.size > 1 and (self._shared is None or frozen != self._frozen):
            self._shared = None  # before the next one: it lets go of its hooks on the parameters
            # It knows the parameters that learn from the start on, so a thawed backbone needs a new one.
            self._shared = DistributedDataParallel(_Shared(self.network, synchronised=self.synchronised))
        self._frozen = frozen

    def prepare(self, batch: ActionBatch, *, augmented: bool = False) -> ActionBatch:
        """Return the batch on the device, with the random changes that came with it where it is to learn from."""
        moved = batch.to(self.device, non_blocking=True)
        return augment(moved) if augmented else moved

    def forward(self, batch: ActionBatch) -> FoulLogits | Tensor | None:
        """Score a prepared batch, for learning.

        Returns:
            Logits. Of a batch without actions, where other ranks have some: a zero to go backward from; else None.
        """
        with self.autocast():
            if self._shared is not None:
                answer: FoulLogits | Tensor = self._shared(batch.views, batch.view_counts, batch.view_kinds)
                return answer
            if not len(batch):
                return None
            logits: FoulLogits = self.network(batch.views, batch.view_counts, batch.view_kinds)
            return logits

    def gradients_shared(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch: with the last one of a step the ranks add up their gradients."""
        return nullcontext() if self._shared is None or last else self._shared.no_sync()

    def take_step(self) -> None:
        """Change the weights by the gradients; with fp16 nothing changes where they overflowed.

        Raises:
            DivergedError: They are no numbers; the weights are still those before the step.
        """
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if not norm.isfinite():
            if not self.scaler.is_enabled():
                raise DivergedError(_gradient_sentence(float(norm), self.device, self.amp))
            self.skipped_steps += 1
        if self.max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes, by the names of `Checkpoint`'s fields; `state_dict` is what to publish."""
        return {
            "state_dict": self.network_to_publish.state_dict(),
            "raw_state_dict": None if self.ema is None else self.network.state_dict(),
            "ema_updates": 0 if self.ema is None else self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; the settings are the same."""
        if self.ema is not None:
            self.ema.load(state["state_dict"], state["ema_updates"])
        raw = state["state_dict"] if state["raw_state_dict"] is None else state["raw_state_dict"]
        self.network.load_state_dict(raw)
        self.optimizer.load_state_dict(dict(state["optimizer"] or {}))
        self.scaler.load_state_dict(dict(state["scaler"] or {}))


def _gradient_sentence(norm: float, device: torch.device, amp: torch.dtype | None) -> str:
    if device.type == "cpu" and amp is torch.bfloat16:
        # measured with torch 2.15: where a 3D kernel is larger than what is left of the picture, such as at 16 px.
        why = "PyTorch's bf16 convolutions of small pictures are wrong on CPUs: use --loop.amp none, or"
    else:
        why = "Use"
    cure = "a lower --optim.lr, --optim.max-grad-norm 1, or --schedule.warmup-epochs 1."
    return f"the loss is a number, but the norm of its gradient is {norm}. {why} {cure}"


_BF16_ON_CPU: Final = (
    "--loop.amp bf16 on a CPU: PyTorch (seen with 2.15) can compute wrong gradients of 3D convolutions over "
    "pictures of a few pixels, such as the last layers of a small --clip.size-px. Use "
    "--loop.amp none to learn; bf16 is for GPUs."
)


def warnings_of(config: TrainConfig, learner: Learner) -> tuple[str, ...]:
    """Return one sentence for each choice that is allowed and probably not wanted."""
    # measured: Conv3d(64, 64, 3) on [2, 64, 2, 2, 2], weight gradient under autocast: infinite relative error.
    doubtful = learner.amp is torch.bfloat16 and learner.device.type == "cpu"
    return (*config.loss.imbalance_warnings(), *([_BF16_ON_CPU] if doubtful else []))


def build_learner(
    config: TrainConfig,
    network: FoulNetwork,
    class_counts: Mapping[Head, Sequence[int]],
    device: torch.device,
    world: World | None = None,
) -> Learner:
    """Put the network on `device` and build what trains it.

    Args:
        config: The settings.
        network: As made or loaded.
        class_counts: Of the training split, per head, in the vocabulary's order.
        device: Where to train.
        world: The processes of the run; one where left out.

    Raises:
        ConfigError: A setting does not go with the network, the data or this machine.
    """
    world = world or World()
    network = network.to(device)
    if config.loop.channels_last:
        use_channels_last(network)
    # A copy of its own: neither checkpointed nor compiled nor synchronised.
    ema = MovingAverage(network, config.loop.ema_decay) if config.loop.ema_decay else None
    if config.model.sync_batch_norm:
        synchronise_norms(network, device, world)
    if config.loop.gradient_checkpointing:
        checkpoint_blocks(network.backbone)
    if config.loop.compile:
        compile_backbone(network.backbone)
    return Learner(
        network=network,
        loss=build_loss(config.loss, class_counts).to(device),
        optimizer=build_optimizer(network, config.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=config.loop.amp == "fp16"),
        device=device,
        amp=_AMP_DTYPES[config.loop.amp],
        max_grad_norm=config.optim.max_grad_norm,
        world=world,
        seed=config.seed,
        accumulate=config.loop.accumulate,
        freeze_epochs=config.optim.freeze_epochs,
        ema=ema,
        synchronised=config.model.sync_batch_norm,
    )
