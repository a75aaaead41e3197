"""The clip contract: which frames of a clip the network sees, and how they are resized and normalised.

A `ClipSpec` travels in the checkpoint and in the artifact's manifest. The frame indices are written out in it, so that
nobody recomputes them from a formula: the integer and the float form of the original's rule differ for 885 of 3,100
(length, fps) pairs.

Frame numbers count on the data set's own timeline of 25 frames per second: frame `i` is the picture shown at `i / 25`
seconds after the clip's first frame. `mvfoul.video` maps them to files of any other frame rate by time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, get_args

from mvfoul.errors import ClipSpecError

TIMELINE_FPS: Final = 25
"""Frames per second of SoccerNet-MVFoul, and so of the timeline that frame indices count on."""

CONTACT_FRAME: Final = 75
"""Where the contact happens in the clips of SoccerNet-MVFoul, which are 126 or 127 frames long."""

Resize = Literal["squash", "center_crop"]
Preset = Literal["two-second", "vars-2023"]
RGB = tuple[float, float, float]

KINETICS_MEAN: Final[RGB] = (0.43216, 0.394666, 0.37645)
"""Mean of the Kinetics-400 weights of torchvision's video ResNets and S3D (their `transforms()`), of values in 0..1."""
KINETICS_STD: Final[RGB] = (0.22803, 0.22145, 0.216989)

_MAX_SIZE_PX = 1024
_MAX_VIEWS = 64


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """How one view becomes a uint8 tensor `[3, T, H, W]`, and how the network's first layer normalises it."""

    window: tuple[int, int]
    """First source frame, and the frame after the last one, at 25 fps."""
    frame_indices: tuple[int, ...]
    """The source frames the network sees, in order, at 25 fps. Repeats are allowed."""
    resize: Resize = "squash"
    """`squash`: to `size_px` x `size_px`, whatever the aspect ratio. `center_crop`: short side to `short_side_px`, then
    the middle `size_px` x `size_px`, as torchvision's Kinetics presets do; it sees half the width of a 16:9 frame."""
    size_px: int = 224
    short_side_px: int = 256
    """Used by `center_crop` only."""
    mean: RGB = KINETICS_MEAN
    std: RGB = KINETICS_STD
    max_views: int = 5

    def __post_init__(self) -> None:
        for name, kind in (("window", int), ("frame_indices", int), ("mean", float), ("std", float)):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), kind))
        _check_frames(self)
        _check_picture(self)

    @property
    def num_frames(self) -> int:
        """T, the frames per view."""
        return len(self.frame_indices)

    @property
    def view_shape(self) -> tuple[int, int, int, int]:
        """`[3, T, H, W]` of one decoded view."""
        return (3, self.num_frames, self.size_px, self.size_px)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, in the order of the fields."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ClipSpec:
        """Read what `to_json` wrote.

        Raises:
            ClipSpecError: A field is missing, unknown or out of range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ClipSpecError(
                f"clip spec has unknown fields {unknown}; known: {sorted(known)}. Use the version that wrote it."
            )
        if missing := sorted(known - set(values)):
            raise ClipSpecError(f"clip spec lacks the fields {missing}. Export or train again with this version.")
        return cls(**values)


def preset(name: Preset = "two-second", *, num_frames: int = 16, **overrides: Any) -> ClipSpec:
    """Build a named clip specification.

    `two-second`: 2 s around the contact (frames 50 to 99), sampled at the middles of `num_frames` equal segments.
    `vars-2023`: frames 63 to 86 at 17 fps, 16 frames, centre crop; what the published VARS weights were trained on.

    Args:
        name: The preset.
        num_frames: T. `vars-2023` yields 16 and refuses anything else.
        overrides: Any other field of `ClipSpec`, such as `size_px` or `mean`.

    Raises:
        ClipSpecError: The preset is unknown, or cannot yield `num_frames` frames.
    """
    if name == "two-second":
        window = (CONTACT_FRAME - TIMELINE_FPS, CONTACT_FRAME + TIMELINE_FPS)
        return ClipSpec(**{"window": window, "frame_indices": sample_window(window, num_frames), **overrides})
    if name == "vars-2023":
        if num_frames != len(_VARS_2023_FRAMES):
            raise ClipSpecError(
                f"preset vars-2023 yields 16 frames, not {num_frames}. Use num_frames=16, or two-second."
            )
        return ClipSpec(
            **{"window": (63, 87), "frame_indices": _VARS_2023_FRAMES, "resize": "center_crop", **overrides}
        )
    raise ClipSpecError(f"unknown clip preset {name!r}; known: {', '.join(get_args(Preset))}.")


# The original keeps frame 63 + j where `j % (25 / 17) < 1` in float arithmetic, for j from 0 to 23.
_VARS_2023_FRAMES: Final = (63, 65, 66, 68, 69, 71, 72, 74, 75, 77, 78, 80, 81, 83, 84, 86)


def sample_window(window: tuple[int, int], num_frames: int) -> tuple[int, ...]:
    """Pick `num_frames` frames at the middles of equal segments of `window`, in integer arithmetic.

    Raises:
        ClipSpecError: There are more frames to pick than the window has, or none.
    """
    start, end = window
    length = end - start
    if not 1 <= num_frames <= length:
        raise ClipSpecError(
            f"cannot pick {num_frames} frames from window {window} of {length}. Use 1 to {length} frames."
        )
    return tuple(start + (2 * i + 1) * length // (2 * num_frames) for i in range(num_frames))


def with_size(spec: ClipSpec, size_px: int) -> ClipSpec:
    """Return `spec` at another picture size, the short side of a centre crop in proportion."""
    return replace(
        spec, size_px=size_px, short_side_px=max(size_px, round(spec.short_side_px * size_px / spec.size_px))
    )


def _numbers(name: str, values: Any, kind: type[int] | type[float]) -> tuple[Any, ...]:
    whole = int if kind is int else (int, float)
    if not isinstance(values, (list, tuple)) or any(isinstance(v, bool) or not isinstance(v, whole) for v in values):
        raise ClipSpecError(f"clip spec {name} is {values!r}; it must be a list of {kind.__name__} values.")
    return tuple(kind(v) for v in values)


def _check_frames(spec: ClipSpec) -> None:
    if len(spec.window) != 2 or not 0 <= spec.window[0] < spec.window[1]:
        raise ClipSpecError(f"clip spec window is {spec.window}; it must be (start, end) with 0 <= start < end.")
    start, end = spec.window
    frames = spec.frame_indices
    if not frames:
        raise ClipSpecError("clip spec frame_indices is empty; name at least one frame.")
    if list(frames) != sorted(frames):
        raise ClipSpecError(f"clip spec frame_indices {frames} run backwards; sort them.")
    if outside := [i for i in frames if not start <= i < end]:
        raise ClipSpecError(
            f"clip spec frame_indices {outside} lie outside window {spec.window}; frames run from {start} to {end - 1}."
        )


def _check_picture(spec: ClipSpec) -> None:
    if spec.resize not in get_args(Resize):
        raise ClipSpecError(f"clip spec resize is {spec.resize!r}; known: {', '.join(get_args(Resize))}.")
    for name, low, high in (
        ("size_px", 1, _MAX_SIZE_PX),
        ("short_side_px", 1, 4 * _MAX_SIZE_PX),
        ("max_views", 1, _MAX_VIEWS),
    ):
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ClipSpecError(f"clip spec {name} is {value!r}; it must be a whole number from {low} to {high}.")
    if spec.resize == "center_crop" and spec.short_side_px < spec.size_px:
        raise ClipSpecError(
            f"clip spec short_side_px {spec.short_side_px} is smaller than size_px {spec.size_px}; raise it."
        )
    if len(spec.mean) != 3 or not all(0 <= value <= 1 for value in spec.mean):
        raise ClipSpecError(
            f"clip spec mean is {spec.mean}; it must be three values from 0 to 1 (of pixels scaled to 0..1)."
        )
    if len(spec.std) != 3 or not all(0 < value <= 1 for value in spec.std):
        raise ClipSpecError(f"clip spec std is {spec.std}; it must be three values above 0 and at most 1.")
