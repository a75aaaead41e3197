"""`python -m export`: parse the flags, then export."""

from __future__ import annotations

import sys

import tyro

from export.config import ExportConfig
from mvfoul.errors import MVFoulError

EXIT_PARITY_FAILED = 3


def main() -> int:
    """Return the exit code."""
    try:
        config = tyro.cli(ExportConfig, prog="python -m export", config=(tyro.conf.FlagCreatePairsOff,))
        # torch takes seconds to import; `--help` and a wrong flag should not.
        from export.pipeline import export_checkpoint

        outcome = export_checkpoint(config)
    except MVFoulError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was changed\n")
        return 130
    return 0 if outcome.artifact else EXIT_PARITY_FAILED


if __name__ == "__main__":
    sys.exit(main())
