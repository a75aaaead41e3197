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
        # KServe parses sys.argv when it is imported, and would take a flag of ours for its own.
        sys.argv = sys.argv[:1]
        from serving.server import serve

        serve(config)
    except MVFoulError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
