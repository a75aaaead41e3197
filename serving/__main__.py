"""`python -m serving`: parse the flags, then serve."""

from __future__ import annotations

import sys

import tyro

from mvfoul.command import exit_code_of
from serving.config import ServeConfig


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_serve)


def _serve() -> int:
    config = tyro.cli(ServeConfig, prog="python -m serving")
    from serving.startup import run

    run(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
