"""`python -m export`: parse the flags, then export."""

from __future__ import annotations

import sys

import tyro

from export.config import ExportConfig
from export.exit_codes import NO_PLAN, PARITY_FAILED, PUBLISHED
from mvfoul.command import exit_code_of


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_export, when_interrupted="interrupted; nothing was changed")


def _export() -> int:
    config = tyro.cli(ExportConfig, prog="python -m export", config=(tyro.conf.FlagCreatePairsOff,))
    # torch takes seconds to import; `--help` and a wrong flag should not.
    from export.pipeline import export_checkpoint

    outcome = export_checkpoint(config)
    if outcome.artifact is None:
        return PARITY_FAILED
    return NO_PLAN if outcome.plan.missing and not config.allow_no_plan else PUBLISHED


if __name__ == "__main__":
    sys.exit(main())
