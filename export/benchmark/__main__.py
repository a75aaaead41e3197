"""`python -m export.benchmark`: parse the flags, then race the engines."""

from __future__ import annotations

import sys

import tyro

from export.benchmark.config import BenchmarkConfig
from mvfoul.command import exit_code_of

EXIT_ENGINE_FAILED = 1


def main() -> int:
    """Return the exit code: 1 where an engine failed on the way."""
    return exit_code_of(_benchmark)


def _benchmark() -> int:
    config = tyro.cli(BenchmarkConfig, prog="python -m export.benchmark", config=(tyro.conf.FlagCreatePairsOff,))
    from export.benchmark.race import run_benchmark

    return EXIT_ENGINE_FAILED if run_benchmark(config).failed else 0


if __name__ == "__main__":
    sys.exit(main())
