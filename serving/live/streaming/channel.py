"""One camera on the air: sends each picture when it is due, to whoever listens, and can be told to fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import av
import numpy as np

from serving.live.clock import TICKS_PER_S, now_s
from serving.live.streaming.programme import (
    INTERVAL_TICKS,
    EncodedPicture,
    Programme,
    Take,
    codec_of,
    decode_keyframe,
    length_ticks,
    read_clip,
    still,
)

Fault = Literal["stall", "drop", "black", "frozen", "jump", "restart"]
"""stall: sends nothing, then all of it at once. drop: pictures are lost. black, frozen: other pictures.
jump: timestamps change for good. restart: hangs up, and refuses connections for a while."""

_START_TICKS: Final = 10 * TICKS_PER_S
_NOTHING_TICKS: Final = 5 * TICKS_PER_S
"""How long a take without clips is black."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OnAir:
    """A picture as it is sent."""

    data: bytes
    ticks: int
    dts_ticks: int
    is_keyframe: bool
    unix_s: float
    """When a camera would have taken it."""


class Sink(Protocol):
    """Somebody who gets a channel's pictures."""

    def send(self, picture: OnAir) -> None:
        """Take a picture; must not wait."""

    def close(self) -> None:
        """Hang up."""


@dataclass(frozen=True)
class Started:
    """A take began."""

    number: int
    take: Take
    starts_s: float
    """UNIX seconds, as are the others."""
    contact_s: float | None
    ends_s: float


class Schedule:
    """When each take of a programme starts: common to all channels, so that they stay together for ever."""

    def __init__(self, programme: Programme, starts_s: float, told: Callable[[Started], None]) -> None:
        self._programme, self._told = programme, told
        self.starts_s = starts_s
        self._lock = threading.Lock()
        self._ends: list[int] = []

    @property
    def first(self) -> Take:
        """Return the first take, which need not have started."""
        return self._programme.take(0)

    def at(self, number: int) -> tuple[Take, int, int]:
        """Return a take, when it starts, in ticks of the programme, and how long it is."""
        take = self._programme.take(number)
        with self._lock:
            is_news = number == len(self._ends)
            start = self._ends[number - 1] if number else 0
            length = max((length_ticks(read_clip(clip)) for clip in take.clips if clip), default=_NOTHING_TICKS)
            if is_news:
                self._ends.append(start + length)
        if is_news:
            at_s = self.starts_s + start / TICKS_PER_S
            contact_s = None if take.contact_ticks is None else at_s + take.contact_ticks / TICKS_PER_S
            self._told(Started(number, take, at_s, contact_s, at_s + length / TICKS_PER_S))
        return take, start, length


class Channel:
    """Plays one camera's clips in real time."""

    def __init__(self, name: str, index: int, schedule: Schedule) -> None:
        self.name, self._index, self._schedule = name, index, schedule
        clips = schedule.first.clips
        self.codec, self.width_px, self.height_px = codec_of(clips[index] or next(clip for clip in clips if clip))
        self._sinks: set[Sink] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"channel-{name}", daemon=True)
        self._fault: tuple[Fault, float] | None = None
        self._shift_ticks = 0
        self._substitute: Iterator[EncodedPicture] | None = None
        self._last_keyframe: EncodedPicture | None = None
        self._needs_keyframe = False
        self._delay_ticks = 0
        self._latest_ticks = 0
        self.is_off = False
        self.failure: Exception | None = None
        """Why it went off the air for good."""

    def start(self) -> None:
        """Go on the air."""
        self._thread.start()

    def stop(self) -> None:
        """Go off the air and hang up."""
        self._stopping.set()
        self._thread.join()
        self._hang_up()

    def add(self, sink: Sink) -> bool:
        """Send to `sink` from now on; False while the camera is off."""
        with self._lock:
            if not self.is_off:
                self._sinks.add(sink)
            return not self.is_off

    def remove(self, sink: Sink) -> None:
        """Stop sending to `sink`."""
        with self._lock:
            self._sinks.discard(sink)

    def fail(self, fault: Fault, seconds: float) -> None:
        """Fail for some seconds from now on; `jump` changes the timestamps by as many, for good."""
        if fault == "jump":
            self._shift_ticks += round(seconds * TICKS_PER_S)
            return
        if fault == "restart":
            self.is_off = True
            self._hang_up()
        self._substitute = None
        self._fault = fault, now_s() + seconds

    def _hang_up(self) -> None:
        with self._lock:
            sinks, self._sinks = self._sinks, set()
        for sink in sinks:
            sink.close()

    def _run(self) -> None:
        try:
            self._play()
        except Exception as error:  # noqa: BLE001  told to whoever runs the server
            _log.exception("camera %s goes off the air", self.name)
            self.failure = error
            self._hang_up()

    def _play(self) -> None:
        number = 0
        while not self._stopping.is_set():
            take, start, length = self._schedule.at(number)
            clip = take.clips[self._index]
            first, *_ = read_clip(clip) if clip else [None]
            self._delay_ticks = first.ticks - first.dts_ticks if first else 0
            for picture, due in _paced(read_clip(clip) if clip else self._black(length)):
                self._wait_until(self._schedule.starts_s + (start + due) / TICKS_PER_S)
                if self._stopping.is_set():
                    return
                self._put(picture, start)
            number += 1

    def _wait_until(self, at_s: float) -> None:
        fault = self._fault
        if fault and fault[0] == "stall":
            at_s = max(at_s, fault[1])
        self._stopping.wait(max(0.0, at_s - now_s()))

    def _black(self, length: int) -> Iterator[EncodedPicture]:
        for picture in still(np.zeros((self.height_px, self.width_px, 3), np.uint8), codec=self.codec):
            if picture.ticks + INTERVAL_TICKS > length:
                return
            yield picture

    def _put(self, picture: EncodedPicture, start: int) -> None:
        if picture.is_keyframe:
            self._last_keyframe = picture
        fault = self._fault
        if fault and now_s() >= fault[1]:
            # What follows is built on pictures that nobody got.
            self._needs_keyframe = fault[0] in ("black", "frozen")
            self._fault = fault = None
            self.is_off = False
        if self._needs_keyframe and picture.is_keyframe:
            self._needs_keyframe, self._substitute = False, None
        if fault and fault[0] in ("drop", "restart"):
            return
        replaced = (fault is not None and fault[0] in ("black", "frozen")) or self._needs_keyframe
        if not replaced:
            self._send(picture, start)
        elif (other := self._replacement(picture, fault)).ticks + start > self._latest_ticks:
            self._send(other, start)

    def _replacement(self, picture: EncodedPicture, fault: tuple[Fault, float] | None) -> EncodedPicture:
        if self._substitute is None:
            rgb = np.zeros((self.height_px, self.width_px, 3), np.uint8)
            if fault and fault[0] == "frozen" and self._last_keyframe:
                rgb = decode_keyframe(self._last_keyframe, self.codec)
            self._substitute = still(rgb, codec=self.codec)
        other = next(self._substitute)
        # Without reordering; as late after its decoding as a keyframe of the clip.
        return EncodedPicture(other.data, picture.dts_ticks + self._delay_ticks, picture.dts_ticks, other.is_keyframe)

    def _send(self, picture: EncodedPicture, start: int) -> None:
        self._latest_ticks = max(self._latest_ticks, picture.ticks + start)
        shift = _START_TICKS + start + self._shift_ticks
        on_air = OnAir(
            data=picture.data,
            ticks=picture.ticks + shift,
            dts_ticks=picture.dts_ticks + shift,
            is_keyframe=picture.is_keyframe,
            unix_s=self._schedule.starts_s + (start + picture.ticks) / TICKS_PER_S,
        )
        with self._lock:
            sinks = list(self._sinks)
        for sink in sinks:
            try:
                sink.send(on_air)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                _log.warning("camera %s: a listener is dropped: %s", self.name, error)
                self.remove(sink)
                with suppress(av.error.FFmpegError, OSError, ValueError):
                    sink.close()


def _paced(pictures: Iterable[EncodedPicture]) -> Iterator[tuple[EncodedPicture, int]]:
    """Yield each picture and when a camera could send it: as soon as it and what it is built on have been seen."""
    due = 0
    for picture in pictures:
        due = max(due, picture.ticks)
        yield picture, due
