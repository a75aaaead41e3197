"""`python -m training.synthetic --out DIR`: parse the flags, then simulate, film and write."""

from __future__ import annotations

import sys

from mvfoul.errors import MVFoulError
from training.synthetic.config import parse_config

INTERRUPTED = 130  # as shells say of a process that Ctrl-C ended


def main() -> int:
    """Return the exit code."""
    try:
        config = parse_config(sys.argv[1:])
        # Late: PyAV and rich take a moment to load, and `--help` must answer at once.
        from training.synthetic.generate import generate

        generate(config)
    except MVFoulError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; start the same command again\n")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
