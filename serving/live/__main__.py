"""`python -m serving.live`: parse the flags, then watch or review."""

from __future__ import annotations

import sys

import tyro

from mvfoul.command import exit_code_of
from serving.live.config import LiveConfig


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_run)


def _run() -> int:
    config = tyro.cli(LiveConfig, prog="python -m serving.live")
    from serving.live.startup import run

    run(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
