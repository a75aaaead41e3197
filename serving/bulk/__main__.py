"""`python -m serving.bulk --data DIR --out predictions.json`: parse the flags, then ask."""

from __future__ import annotations

import sys

import tyro

from mvfoul.command import exit_code_of
from serving.bulk.config import BulkConfig


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_run, when_interrupted="interrupted; the same command goes on from here")


def _run() -> int:
    config = tyro.cli(BulkConfig, prog="python -m serving.bulk", config=(tyro.conf.FlagCreatePairsOff,))
    from serving.bulk.run import run

    return run(config)


if __name__ == "__main__":
    sys.exit(main())
