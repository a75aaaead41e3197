"""`python -m training.download --out DIR`: fetch the public data set, check it, and extract it."""

from __future__ import annotations

import sys

from mvfoul.command import exit_code_of
from training.download.config import parse_config


def main() -> int:
    """Return the exit code."""
    return exit_code_of(
        _download, when_interrupted="interrupted; the same command goes on where this one stopped, nothing is lost"
    )


def _download() -> int:
    config = parse_config(sys.argv[1:])
    # Late: the hub's client takes a moment to load, and `--help` must answer at once.
    from training.download.fetch import fetch

    fetch(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
