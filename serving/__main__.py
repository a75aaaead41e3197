"""`python -m serving`: parse the flags, then serve."""

from __future__ import annotations

import sys

import tyro

from mvfoul.errors import MVFoulError
from serving.config import ServeConfig


def main() -> int:
    """Return the exit code."""
    try:
        config = tyro.cli(ServeConfig, prog="python -m serving")
        from serving.startup import run

        run(config)
    except MVFoulError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
