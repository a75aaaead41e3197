"""Actions as tensors, for `torch.utils.data.DataLoader`, and how actions become a batch.

    MultiViewDataset[i]   -> ActionSample   views uint8 [V,3,T,H,W], view_kinds [V], V from 0 to num_views
    collate_actions       -> ActionBatch    views uint8 [N,3,T,H,W], view_kinds [N], view_counts [B], labels [B]

The views of a batch lie one after the other on N: nothing is padded. Pixels stay uint8, 0 to 255; normalisation is the
network's first layer.

    data = MultiViewDataset("data/mvfoul", "train", num_views=5, fps=25.0)
    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=8, collate_fn=collate_actions)

A clip that cannot be decoded never stops an epoch: it is left out, and its name and the reason travel in `skipped` of
the sample and of the batch, through worker processes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mvfoul.clip import TIMELINE_FPS, ClipSpec, preset, sample_window
from mvfoul.errors import ConfigError
from training.annotations import ActionRecord, load_annotations
from training.augment.parameters import DRAWS, ROW, draw
from training.clips import ClipReader
from training.config.augment import Ranges
from training.frames import FrameRule

UNLABELLED: Final = -1
LIVE: Final = 0
REPLAY: Final = 1

Transform = Callable[[Tensor], Tensor]
"""One view, uint8 `[3, T, H, W]`, to the same."""


class ActionSample(NamedTuple):
    """One action."""

    views: Tensor
    """uint8 `[V, 3, T, H, W]`; V is 0 where no clip could be decoded."""
    view_kinds: Tensor
    """int64 `[V]`: `LIVE` (0) or `REPLAY` (1); see `ClipRecord.is_replay`."""
    action: int
    """Index in `ACTION_CLASSES`, or -1 where there is no label."""
    offence_severity: int
    """Index in `OFFENCE_SEVERITIES`, or -1."""
    action_id: str
    skipped: tuple[str, ...]
    """One sentence per clip that could not be decoded."""
    changes: Tensor | None = None
    """float32 `[V, ROW]`: random changes still to be made by `training.augment.pixels.augment`; None: none."""
    cameras: tuple[str, ...] = ()
    """V: the camera type of each view, as annotated."""


@dataclass(frozen=True)
class ActionBatch:
    """B actions with N views in all. B is 0 where no clip of any of them could be decoded."""

    views: Tensor
    """uint8 `[N, 3, T, H, W]`: the views of the first action, then of the second, and so on."""
    view_kinds: Tensor
    """int64 `[N]`: `LIVE` (0) or `REPLAY` (1)."""
    view_counts: Tensor
    """int64 `[B]`, each at least 1, summing to N."""
    action: Tensor
    """int64 `[B]`; -1 where there is no label."""
    offence_severity: Tensor
    """int64 `[B]`; -1 where there is no label."""
    action_ids: tuple[str, ...]
    """B of them."""
    left_out: tuple[str, ...] = ()
    """Ids of the actions without any view: they are not in the batch."""
    skipped: tuple[str, ...] = ()
    """One sentence per clip that could not be decoded, of the actions left out too."""
    changes: Tensor | None = None
    """float32 `[N, ROW]`, always on the CPU: the random changes still to be made; None: there are none."""
    cameras: tuple[str, ...] = ()
    """N: the camera type of each view, as annotated."""

    def __len__(self) -> int:
        """B, the number of actions."""
        return len(self.action_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ActionBatch:
        """Return the batch with its tensors on `device`, but for `changes`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ActionBatch:
        """Return the batch in page-locked memory; the DataLoader calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> ActionBatch:
        return replace(
            self,
            views=function(self.views),
            view_kinds=function(self.view_kinds),
            view_counts=function(self.view_counts),
            action=function(self.action),
            offence_severity=function(self.offence_severity),
        )


class MultiViewDataset(Dataset[ActionSample]):
    """The usable actions of one split (see `training.annotations` for the filter).

    Which views an action yields: at most `num_views`, in the annotations' order. Where there are more, a training split
    draws among them, others take the first ones. A view that cannot be decoded is replaced by the next one.

    Randomness depends on (seed, epoch, index, repetition) alone, not on workers or on what was loaded before: call
    `set_epoch` before each epoch. Around `transform`, torch's global generator is seeded the same way and put back.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        transform: Transform | None = None,
        num_views: int = 5,
        fps: float = 25.0,
        *,
        clip: ClipSpec | None = None,
        filtered: bool = True,
    ) -> None:
        """Read the annotations; no clip is opened yet.

        Args:
            path: The folder with the splits in it.
            split: train, valid, test or challenge, in any known spelling.
            transform: Called with each view; it must keep shape and dtype.
            num_views: V at most; at most `clip.max_views`.
            fps: Rate at which the clip's window is read, up to the data set's 25 (every frame). It never adds frames:
                T of them are picked from those of this rate, at the middles of T equal segments.
            clip: Frames and size. Left out: `two-second`, 16 frames of those that `fps` yields, 224 px. Where it is
                given, all its frames must be frames of rate `fps`, counted from its window's start.
            filtered: False keeps the actions that the official filter drops, unlabelled.

        Raises:
            AnnotationError: The folder does not hold this split, or nothing of it is usable.
            ConfigError: `num_views` or `fps` is out of range, or `fps` contradicts `clip`.
        """
        self.clip = _resolve_clip(clip, fps)
        if not 1 <= num_views <= self.clip.max_views:
            raise ConfigError(f"num_views is {num_views}; it must be from 1 to the clip spec's {self.clip.max_views}.")
        self.annotations = load_annotations(Path(path), split, filtered=filtered)
        self.split = self.annotations.split
        self.transform = transform
        self.num_views = num_views
        self.random_views = self.split == "train"
        """Whether views are drawn where there are more than `num_views`. Change it before a DataLoader starts."""
        self.augmentation: Ranges | None = None
        """What random changes of the pixels are drawn from, for each view anew; they are made later, on the device."""
        self.seed = 0
        """Change it before a DataLoader starts."""
        # Shared memory: workers that persist over epochs see the change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.clips = ClipReader(FrameRule(self.clip))
        """Where pixels come from. Replace it before a DataLoader starts."""

    @property
    def records(self) -> tuple[ActionRecord, ...]:
        """The actions, in the order of indices."""
        return self.annotations.records

    def __len__(self) -> int:
        """The number of actions."""
        return len(self.records)

    def __getitem__(self, index: int | tuple[int, int]) -> ActionSample:
        """Decode one action. Never raises for a clip that cannot be decoded.

        Args:
            index: Of the action; or (index, k) for its k-th repetition within the epoch, with randomness of its own.
        """
        index, *repetition = index if isinstance(index, tuple) else (index,)
        record = self.records[index]
        generator = self._generator(index % len(self), *repetition)
        # One row for each clip, read or not: whether another clip can be read makes no difference.
        uniforms = torch.rand(len(record.clips), DRAWS + 1, generator=generator, dtype=torch.float64)
        views, chosen, skipped = self._views(record, self._shifts(uniforms[:, DRAWS]), generator)
        if self.transform is not None and len(views):
            views = _transformed(views, self.transform, seed=int(torch.randint(2**62, (), generator=generator)))
        labels = record.labels
        action, severity = (labels.action, labels.offence_severity) if labels else (UNLABELLED, UNLABELLED)
        kinds = torch.tensor([REPLAY if record.clips[k].is_replay else LIVE for k in chosen], dtype=torch.int64)
        changes = self._changes(uniforms[chosen, :DRAWS])
        cameras = tuple(record.clips[k].camera_type for k in chosen)
        return ActionSample(views, kinds, action, severity, record.action_id, skipped, changes, cameras)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's views and random transforms; workers that already run obey from their next action on."""
        self._epoch.fill_(epoch)

    def preload(
        self,
        *,
        max_bytes: int,
        num_threads: int = 4,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[str, ...]:
        """Decode every clip once into memory, which pays where the clips are decoded for many epochs.

        Call it before a DataLoader starts: worker processes then share the memory instead of filling their own.

        Args:
            max_bytes: Limit of the decoded size, `3 * T * H * W` bytes per clip and more with jitter.
            num_threads: Clips decoded at the same time.
            progress: Called with (clips done, clips in all).

        Returns:
            One sentence per clip that cannot be decoded.

        Raises:
            ConfigError: The clips need more than `max_bytes`; nothing is decoded.
        """
        clips = [clip for record in self.records for clip in record.clips]
        try:
            return self.clips.preload(clips, max_bytes=max_bytes, num_threads=num_threads, progress=progress)
        except ConfigError as error:
            raise ConfigError(f"{self.split}: {error}") from error

    def _generator(self, *numbers: int) -> torch.Generator:
        # numpy's SeedSequence mixes the numbers: neighbouring epochs and indices are unrelated.
        state = np.random.SeedSequence((self.seed, int(self._epoch), *numbers)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def _shifts(self, uniforms: Tensor) -> list[int]:
        jitter = self.clips.rule.jitter
        shifts: list[int] = (torch.floor(uniforms * (2 * jitter + 1)).long() - jitter).tolist()
        return shifts

    def _changes(self, uniforms: Tensor) -> Tensor | None:
        if self.augmentation is None:
            return None
        rows = [draw(self.augmentation, numbers).row() for numbers in uniforms.tolist()]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, ROW)

    def _views(
        self, record: ActionRecord, shifts: Sequence[int], generator: torch.Generator
    ) -> tuple[Tensor, list[int], tuple[str, ...]]:
        """Return the views, their clips' positions in the record, and what could not be decoded."""
        order: Sequence[int] = range(len(record.clips))
        if self.random_views and len(record.clips) > self.num_views:
            order = torch.randperm(len(record.clips), generator=generator).tolist()
        views: dict[int, Tensor] = {}
        skipped: list[str] = []
        for position in order:
            if len(views) == self.num_views:
                break
            view = self.clips.read(record.clips[position], shifts[position])
            if isinstance(view, str):
                skipped.append(f"action {record.action_id}: {view}")
            else:
                views[position] = view
        chosen = sorted(views)
        if not views:
            return torch.empty((0, *self.clip.view_shape), dtype=torch.uint8), chosen, tuple(skipped)
        return torch.stack([views[position] for position in chosen]), chosen, tuple(skipped)


def collate_actions(samples: Iterable[ActionSample], *, clip: ClipSpec | None = None) -> ActionBatch:
    """Join samples on the axis of views; actions without any view are left out and named in `left_out`.

    Args:
        samples: Any number of them, but none only with `clip`: a rank can be left without an action in the last step.
        clip: Of the data set, for the shape of a batch without samples.
    """
    everything = list(samples)
    seen = [sample for sample in everything if len(sample.views)]
    if everything:
        # Of no view at all, `[0, 3, T, H, W]` still.
        views = torch.cat([sample.views for sample in seen or everything])
    elif clip is not None:
        views = torch.empty((0, *clip.view_shape), dtype=torch.uint8)
    else:
        raise ValueError("no samples to collate, and no clip spec to tell the shape of an empty batch.")
    changes = [sample.changes for sample in seen if sample.changes is not None]
    return ActionBatch(
        views=views,
        view_kinds=torch.cat([torch.empty(0, dtype=torch.int64), *(sample.view_kinds for sample in seen)]),
        view_counts=torch.tensor([len(sample.views) for sample in seen], dtype=torch.int64),
        action=torch.tensor([sample.action for sample in seen], dtype=torch.int64),
        offence_severity=torch.tensor([sample.offence_severity for sample in seen], dtype=torch.int64),
        action_ids=tuple(sample.action_id for sample in seen),
        left_out=tuple(sample.action_id for sample in everything if not len(sample.views)),
        skipped=tuple(reason for sample in everything for reason in sample.skipped),
        cameras=tuple(camera for sample in seen for camera in sample.cameras),
        changes=torch.cat(changes) if changes else None,
    )


def _transformed(views: Tensor, transform: Transform, *, seed: int) -> Tensor:
    # torchvision's random transforms draw from torch's global generator; without this the result would depend on the
    # worker and on what it did before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = [transform(view) for view in views]
    for before, after in zip(views, changed, strict=True):
        if after.shape != before.shape or after.dtype != before.dtype:
            raise ConfigError(
                f"transform turned {before.dtype} {list(before.shape)} into {after.dtype} {list(after.shape)}; it must "
                "keep both. Choose the size in the clip spec; the network normalises."
            )
    return torch.stack(changed)


def _resolve_clip(clip: ClipSpec | None, fps: float) -> ClipSpec:
    if not 0 < fps <= TIMELINE_FPS:
        raise ConfigError(f"fps is {fps}; it must be above 0 and at most {TIMELINE_FPS}, the rate of the data set.")
    if clip is None:
        default = preset("two-second")
        return replace(default, frame_indices=_pick(_frames_at(default.window, fps), default.num_frames, fps))
    frames = _frames_at(clip.window, fps)
    if outside := [index for index in clip.frame_indices if index not in frames]:
        raise ConfigError(
            f"fps {fps} contradicts the clip spec: its frames {outside} are not among the frames of that rate in "
            f"window {clip.window}. Leave fps at {TIMELINE_FPS}, or leave clip out."
        )
    return clip


def _frames_at(window: tuple[int, int], fps: float) -> tuple[int, ...]:
    """Return the frames of `window` at rate `fps`: the first one, then each that reaches the next multiple of 1/fps.

    At 17 fps and window (63, 87) this gives the frames of preset `vars-2023`. In exact fractions: floats go wrong here.
    """
    step = TIMELINE_FPS / Fraction(fps).limit_denominator(1000)
    count = -(-(window[1] - window[0]) // step)
    indices = (window[0] + -(-(k * step) // 1) for k in range(int(count)))
    return tuple(index for index in indices if index < window[1])


def _pick(frames: Sequence[int], num_frames: int, fps: float) -> tuple[int, ...]:
    if len(frames) < num_frames:
        raise ConfigError(
            f"fps {fps} yields {len(frames)} frames in 2 s, the default clip needs {num_frames}. Use fps 8 or more, "
            "or give a clip spec with fewer frames."
        )
    return tuple(frames[i] for i in sample_window((0, len(frames)), num_frames))
