"""`python -m training.legacy --in 14_model.pth.tar --out vars.pth.tar`: import a published VARS checkpoint."""

from __future__ import annotations

import sys

from mvfoul.command import exit_code_of
from training.legacy.config import parse_config


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_import)


def _import() -> int:
    config = parse_config(sys.argv[1:])
    # Late: torch takes seconds to load, and `--help` must answer at once.
    from training.legacy.convert import convert

    sys.stdout.write(convert(config) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
