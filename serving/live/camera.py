"""One camera: a thread that keeps its last seconds as compressed pictures, says how it is, and cuts clips out of them.

A camera that cannot be reached, stands still or sends nonsense is no failure: `health` says so, `cut` refuses with the
reason, and the thread tries again, ever more rarely. Every instant is in UNIX seconds on the common clock
(`serving.live.clock.now_s`).
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

import av

from mvfoul.errors import ConfigError
from serving.live.buffer import CodedPicture, RingBuffer
from serving.live.clock import TICKS_PER_S, now_s
from serving.live.cut import CameraCut, CutError, cut_pictures, sha256_of
from serving.live.intake import Intake
from serving.live.source import Received, Source, WrongCodecError, check_url, open_source, public_url
from serving.live.watch import FAULTS, PictureState, PictureWatch

__all__ = ["Camera", "CameraCut", "CameraHealth", "CameraSpec", "CutError", "check_names"]

CameraState = Literal["connecting", "ok", "late", "frozen", "black", "gone", "wrong_codec"]

DEFAULT_BUFFER_S: Final = 20.0
DEFAULT_BUFFER_BYTES: Final = 128 * 2**20

_LATE_AFTER_S: Final = 1.0
_AHEAD_S: Final = 0.5
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 8.0
_STOP_S: Final = 1.8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CameraSpec:
    """What the operator says about a camera."""

    name: str
    url: str = field(repr=False)  # it may hold a password
    """rtsp://, http://, udp:// and so on, a file, or `lavfi:testsrc2=size=1280x720:rate=25`."""
    offset_s: float = 0.0
    """Added to the instants of its pictures: positive if the camera's clock is behind the others'."""

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable() or any(c in self.name for c in '=/\\"'):
            raise ConfigError(f"a camera is named {self.name!r}. Use a short name such as main or left.")
        if not math.isfinite(self.offset_s):
            raise ConfigError(f"camera {self.name}: the offset is {self.offset_s} s. Use a number of seconds.")
        check_url(self.url, self.name)


def check_names(specs: Iterable[CameraSpec]) -> None:
    """Refuse two cameras of one name.

    Raises:
        ConfigError: It names them.
    """
    seen: dict[str, str] = {}
    for spec in specs:
        if spec.name in seen:
            raise ConfigError(
                f"two cameras are named {spec.name!r}: {seen[spec.name]} and {public_url(spec.url)}. "
                "Give each a name of its own."
            )
        seen[spec.name] = public_url(spec.url)


@dataclass(frozen=True)
class CameraHealth:
    """How a camera is."""

    name: str
    state: CameraState
    reason: str
    """A sentence for the operator; empty if all is well."""
    fps: float
    width_px: int
    height_px: int
    codec: str
    clock: str
    """Whose clock its instants come from: `rtcp`, `arrival` or `file`."""
    jitter_s: float
    """RFC 3550's estimate."""
    delay_s: float
    """From taken to here. Clock `arrival`: less what is constant in it."""
    frames: int
    dropped: int
    """Pictures that are missing in the timestamps."""
    reconnects: int
    clock_jumps: int
    buffer_s: float
    buffer_bytes: int


class Camera:
    """Watches one camera from `start` to `stop`. Every method may be called from any thread."""

    def __init__(
        self,
        spec: CameraSpec,
        *,
        buffer_s: float = DEFAULT_BUFFER_S,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        clock: Callable[[], float] = now_s,
    ) -> None:
        self.spec = spec
        self._clock = clock
        self._buffer = RingBuffer(max_s=buffer_s, max_bytes=buffer_bytes)
        self._intake = Intake(offset_s=spec.offset_s)
        self._watch = PictureWatch()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera-{spec.name}", daemon=True)
        self._connects = 0
        self._is_connected = False
        self._trouble: tuple[CameraState, str] = ("connecting", "not connected yet")
        self._last_arrival_s = -math.inf
        self._codec = ""

    def start(self) -> None:
        """Begin to watch, in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End within 2 s. If FFmpeg waits for the network just then, its thread ends with its own time-out."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                _log.warning("camera %s: still waits for the network; its thread ends by itself", self.spec.name)

    def now_s(self) -> float:
        """Return the latest instant that the buffer holds; minus infinity while it is empty."""
        with self._changed:
            return self._settled_s()

    def wait_for(self, instant_s: float, timeout_s: float) -> bool:
        """Block until every picture up to `instant_s` has arrived; False if time is over or the camera stops first."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._settled_s() >= instant_s or self._stopping.is_set(), timeout=max(0.0, timeout_s)
            )
            return self._settled_s() >= instant_s

    def cut(self, contact_s: float, *, before_s: float = 3.0, after_s: float = 1.1) -> CameraCut:
        """Cut out the seconds around a contact.

        Raises:
            CutError: The buffer does not hold them all, or they are damaged. The message says what is missing.
        """
        with self._changed:
            pictures = self._buffer.pictures
        start_s = contact_s - before_s
        data, frames, first_frame_s = cut_pictures(self.spec.name, pictures, start_s, contact_s + after_s)
        return CameraCut(
            camera=self.spec.name,
            data=data,
            contact_s=contact_s,
            first_frame_s=first_frame_s,
            frames=frames,
            sha256=sha256_of(data),
        )

    def picture_at(self, instant_s: float) -> PictureState:
        """Return whether the picture was black or frozen at an instant; an empty string if it was neither."""
        with self._changed:
            return self._watch.state_at(instant_s)

    def health(self) -> CameraHealth:
        """Say how the camera is now."""
        with self._changed:
            state, reason = self._judge()
            intake, interval = self._intake, self._intake.pace.interval_ticks
            width_px, height_px = self._watch.size_px
            return CameraHealth(
                name=self.spec.name,
                state=state,
                reason=reason,
                fps=TICKS_PER_S / interval if interval else 0.0,
                width_px=width_px,
                height_px=height_px,
                codec=self._codec,
                clock=intake.clock_source,
                jitter_s=intake.pace.jitter_s,
                delay_s=intake.delay_s,
                frames=intake.pace.frames,
                dropped=intake.pace.dropped,
                reconnects=max(0, self._connects - 1),
                clock_jumps=intake.jumps,
                buffer_s=self._buffer.held_s,
                buffer_bytes=self._buffer.size_bytes,
            )

    def _settled_s(self) -> float:
        settled_s = self._buffer.settled_s
        return -math.inf if settled_s is None else settled_s

    def _judge(self) -> tuple[CameraState, str]:
        now_s, settled_s = self._clock(), self._settled_s()
        if not self._is_connected:
            return self._trouble
        if now_s - self._last_arrival_s > _LATE_AFTER_S:
            return "late", f"no picture for more than {_LATE_AFTER_S:g} s"
        if math.isinf(settled_s):
            return "connecting", self._overflow() or "waits for a keyframe"
        return self._judge_picture(behind_s=now_s - settled_s)

    def _judge_picture(self, behind_s: float) -> tuple[CameraState, str]:
        if self._watch.is_black:
            return "black", FAULTS["black"]
        if self._watch.is_frozen:
            return "frozen", FAULTS["frozen"]
        behind_s += self.spec.offset_s  # meant by the operator
        if behind_s > _LATE_AFTER_S:
            return "late", f"its pictures are more than {_LATE_AFTER_S:g} s behind"
        if behind_s < -_AHEAD_S:
            return "late", f"its clock is more than {_AHEAD_S:g} s ahead of this machine's; set both by one time server"
        return "ok", self._overflow()

    def _overflow(self) -> str:
        return "" if not self._buffer.overflowed else "the buffer's bytes hold less than its seconds; give it more"

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            connected_s = self._clock()
            frames = self._intake.pace.frames
            trouble = self._watch_once()
            if self._intake.pace.frames > frames and self._clock() - connected_s > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            self._lose(*trouble)
            # Jitter, so that cameras behind one switch do not all come back at once.
            self._stopping.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _watch_once(self) -> tuple[CameraState, str]:
        """Watch until the connection is lost; return why."""
        goes_on = False
        try:
            while True:
                with open_source(self.spec.url) as source:
                    self._connect(source, goes_on=goes_on)
                    for received in source.pictures():
                        picture = self._take(received)
                        if source.is_paced:
                            self._stopping.wait(max(0.0, self._intake.due_s - self._clock()))
                        if self._stopping.is_set():
                            return "gone", "stopped"
                        self._add(picture)
                    if not source.is_paced:
                        return "gone", "the stream ended"
                    goes_on = True
        except WrongCodecError as error:
            return "wrong_codec", str(error)
        except av.error.ExitError:
            return "gone", "it does not answer" if not self._is_connected else "nothing came for seconds"
        except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
            return "gone", str(getattr(error, "strerror", "") or error)
        except Exception as error:  # noqa: BLE001  a bug, ours or a library's: the camera is tried again as after any loss
            _log.exception("camera %s: an unforeseen fault", self.spec.name)
            return "gone", f"an unforeseen fault ({type(error).__name__}: {error}); the log has it"

    def _take(self, received: Received) -> CodedPicture:
        jumps = self._intake.jumps
        picture = self._intake.take(received, self._clock())
        if self._intake.jumps > jumps:
            _log.warning(
                "camera %s: its timestamps jumped by %+.1f s; jump %d, joined to what came before",
                self.spec.name,
                self._intake.jumped_s,
                self._intake.jumps,
            )
        return picture

    def _connect(self, source: Source, *, goes_on: bool) -> None:
        with self._changed:
            self._intake.connect(source, goes_on=goes_on)
            self._codec = source.codec
            if not goes_on:
                self._connects += 1
                self._watch.reset()
                self._is_connected = True
                self._last_arrival_s = self._clock()
        if not goes_on:
            _log.info("camera %s: connected, %s", self.spec.name, source.codec)

    def _lose(self, state: CameraState, reason: str) -> None:
        with self._changed:
            was, self._is_connected = self._is_connected, False
            is_news = was or self._trouble != (state, reason)
            self._trouble = state, reason
        if is_news and not self._stopping.is_set():
            _log.warning("camera %s: %s: %s", self.spec.name, state, reason)

    def _add(self, picture: CodedPicture) -> None:
        with self._changed:
            with suppress(av.error.FFmpegError):
                self._watch.look(picture)
            segment = picture.segment
            segment.width_px, segment.height_px = (
                self._watch.size_px if self._watch.size_px[0] else (segment.width_px, segment.height_px)
            )
            self._buffer.append(picture)
            self._last_arrival_s = self._clock()
            self._changed.notify_all()
