"""`python -m training`: parse the flags, then train."""

from __future__ import annotations

import sys

from mvfoul.errors import MVFoulError
from training.recipes import parse_config

INTERRUPTED = 130  # as shells say of a process that Ctrl-C ended


def main() -> int:
    """Return the exit code."""
    config = parse_config(sys.argv[1:])
    try:
        # Late: torch takes seconds to load, and `--help` must answer at once.
        from training.run import train

        return INTERRUPTED if train(config).interrupted else 0
    except MVFoulError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
