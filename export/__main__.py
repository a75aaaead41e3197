"""`python -m export`: parse the flags, then export."""

from __future__ import annotations

import sys

import tyro

from export.config import ExportConfig
from mvfoul.command import exit_code_of

EXIT_PARITY_FAILED = 3


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_export, when_interrupted="interrupted; nothing was changed")


def _export() -> int:
    config = tyro.cli(ExportConfig, prog="python -m export", config=(tyro.conf.FlagCreatePairsOff,))
    # torch takes seconds to import; `--help` and a wrong flag should not.
    from export.pipeline import export_checkpoint

    return 0 if export_checkpoint(config).artifact else EXIT_PARITY_FAILED


if __name__ == "__main__":
    sys.exit(main())
