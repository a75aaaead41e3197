"""`python -m export.inspect DIR`: show an artifact and verify it; every fault is a line, and the exit code is 3."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from export.exit_codes import PARITY_FAILED, PUBLISHED
from mvfoul.command import exit_code_of


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show an artifact and verify it: hashes, schema, graphs, the self-test, the plan, the verdict.

    Exit codes: 0 sound, 2 refused, 3 a fault.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """The directory that `python -m export` wrote."""
    json: bool = False
    """Print one JSON document instead of a table."""


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_inspect)


def _inspect() -> int:
    config = tyro.cli(InspectConfig, prog="python -m export.inspect", config=(tyro.conf.FlagCreatePairsOff,))
    from export.inspection import inspect_artifact, inspection_lines

    inspection = inspect_artifact(config.directory)
    if config.json:
        sys.stdout.write(json.dumps(inspection.to_json(), indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(inspection_lines(inspection)) + "\n")
    return PUBLISHED if inspection.sound else PARITY_FAILED


if __name__ == "__main__":
    sys.exit(main())
