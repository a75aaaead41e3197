"""`python -m training.cache`: decode a data set's clips once, for all epochs, runs and ranks."""

from __future__ import annotations

import sys

from mvfoul.command import exit_code_of
from training.cache.config import parse_config


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_build)


def _build() -> int:
    config = parse_config(sys.argv[1:])
    # Late: the decoder takes a while to load, and `--help` must answer at once.
    from training.cache.build import run

    return run(config)


if __name__ == "__main__":
    sys.exit(main())
