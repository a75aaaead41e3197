"""Start the project's own commands, wait for their line READY, and end them."""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

READY_S = 120
_STOP_S = 20


class ProcessError(Exception):
    """A command ended or did not get ready; the message has the end of its log."""


class Command:
    """`python -m ...` in a process of its own; stderr goes to a log. A gentle one lets others go first."""

    def __init__(self, folder: Path, name: str, arguments: Sequence[str], *, gentle: bool = False) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._stderr = self.log.open("w")
        command = [*(("nice", "-n", "5") if gentle else ()), sys.executable, "-m", *arguments]
        self._stderr.write(f"$ {shlex.join(command)}\n")
        self._stderr.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._stderr, text=True, env=environment
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def ready(self) -> dict[str, str]:
        """Wait for `READY key=value ...` and return the pairs.

        Raises:
            ProcessError: The command ended, or took longer than two minutes.
        """
        line = self.line(lambda text: text.startswith("READY "))
        return dict(pair.split("=", 1) for pair in line.split()[1:])

    def line(self, wanted: Callable[[str], bool]) -> str:
        """Wait for a line of stdout and return it; those before it are lost.

        Raises:
            ProcessError: The command ended, or took longer than two minutes.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(queue.Empty):
                if wanted(line := self._lines.get(timeout=0.5)):
                    return line
        raise ProcessError(f"{self.name} did not get ready; its log ends:\n{self.log.read_text()[-3000:]}")

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            ProcessError: It failed.
        """
        if self.process.wait():
            raise ProcessError(f"{self.name} failed; its log ends:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Send SIGTERM, then SIGKILL to what stays."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stderr.close()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
