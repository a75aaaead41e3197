"""`python -m training.synthetic --out DIR`: parse the flags, then simulate, film and write."""

from __future__ import annotations

import sys

from mvfoul.command import exit_code_of
from training.synthetic.config import parse_config


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_generate, when_interrupted="interrupted; start the same command again")


def _generate() -> int:
    config = parse_config(sys.argv[1:])
    # Late: PyAV and rich take a moment to load, and `--help` must answer at once.
    from training.synthetic.generate import generate

    generate(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
