"""SRT where FFmpeg was built without it, as in PyAV's wheels: libsrt's program receives, and is read from a pipe."""

from __future__ import annotations

import select
import shutil
import subprocess
from typing import Final, Self

PROGRAM: Final = "srt-live-transmit"
"""Of Debian's package srt-tools."""


def is_available() -> bool:
    """Whether the program is installed."""
    return shutil.which(PROGRAM) is not None


class SrtPipe:
    """A transport stream as a file that is read; a context manager that ends the program."""

    def __init__(self, url: str, *, open_timeout_s: float, read_timeout_s: float) -> None:
        connect = ["-a:no", "-tm:1", f"-t:{max(1, round(open_timeout_s))}"]
        self._process = subprocess.Popen(
            [PROGRAM, "-q", "-loglevel:fatal", *connect, url, "file://con"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        if self._process.stdout is None:  # never: it was asked for
            raise TypeError
        self._pipe = self._process.stdout
        self._wait_s, self._read_timeout_s = open_timeout_s, read_timeout_s

    def read(self, size: int) -> bytes:
        """Return what has come; nothing at the end.

        Raises:
            TimeoutError: Nothing came for too long.
        """
        pipe = self._pipe
        ready, _, _ = select.select([pipe], [], [], self._wait_s)
        if not ready:
            raise TimeoutError("nothing came over SRT")
        self._wait_s = self._read_timeout_s
        return pipe.read(size) or b""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()
