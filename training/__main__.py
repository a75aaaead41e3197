"""`python -m training`: parse the flags, then train."""

from __future__ import annotations

import gc
import sys

from mvfoul.command import exit_code_of
from training.recipes import parse_config


def main() -> int:
    """Return the exit code."""
    code = exit_code_of(_train)
    # The traceback of a lost connection holds the loader in a cycle: its workers must end before Python waits for them.
    gc.collect()
    return code


def _train() -> int:
    config = parse_config(sys.argv[1:])
    # Late: torch takes seconds to load, and `--help` must answer at once.
    from training.run import train

    return train(config).exit_code


if __name__ == "__main__":
    sys.exit(main())
