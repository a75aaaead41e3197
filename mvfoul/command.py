"""What all commands do the same: read the recipe, refuse a flag's value, count CPUs, and end.

A command ends with a sentence and an exit code, never with a traceback for a user's error.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

from mvfoul.errors import ConfigError, MVFoulError

INTERRUPTED: Final = 130
"""As shells say of a process that Ctrl-C ended."""
PREEMPTED: Final = 75
"""Stopped by SIGTERM with everything saved: EX_TEMPFAIL of sysexits.h, "the user is invited to retry"."""


def exit_code_of(work: Callable[[], int], *, when_interrupted: str = "interrupted") -> int:
    """Do a command's work and return its exit code.

    An error that the user can cure becomes `error: <message>` on stderr and the error's own exit code; Ctrl-C becomes
    `when_interrupted`. Anything else is a bug and shows its traceback.
    """
    try:
        return work()
    except MVFoulError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{when_interrupted}\n")
        return INTERRUPTED


def exit_on_sigterm() -> None:
    """Let SIGTERM raise `SystemExit`, so that what this process started is stopped, as after Ctrl-C.

    Python alone ends at once and leaves its child processes running; `timeout` and `make` send SIGTERM.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def requested_recipe(args: Sequence[str], *, default: str) -> str:
    """Return what `--recipe` asks for, before the other flags are read: it decides their defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe", default=default)
    try:
        name: str = parser.parse_known_args(list(args))[0].recipe
    except argparse.ArgumentError:  # `--recipe` without a value: the reader of all flags says so
        return default
    return name


def check_flag(accepted: bool, flag: str, value: object, cure: str) -> None:
    """Refuse the value of a flag.

    Raises:
        ConfigError: It is not accepted; the message has the flag, the value and the cure.
    """
    if not accepted:
        raise ConfigError(f"{flag} is {value!r}. {cure}")


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far."""
    import resource  # late: not on every system, and few commands ask

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def available_cpus() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
