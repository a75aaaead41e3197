"""How every command ends: with a sentence and an exit code, never with a traceback for a user's error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from mvfoul.errors import MVFoulError

INTERRUPTED: Final = 130
"""As shells say of a process that Ctrl-C ended."""


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
