"""`python -m serving.repository`: parse the flags, then write."""

from __future__ import annotations

import sys

import tyro

from mvfoul.command import exit_code_of
from serving.repository.config import RepositoryConfig


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_write)


def _write() -> int:
    config = tyro.cli(RepositoryConfig, prog="python -m serving.repository", config=(tyro.conf.FlagCreatePairsOff,))
    # ONNX Runtime and protobuf take a second to import; `--help` and a wrong flag should not.
    from serving.repository.publish import publish

    sys.stdout.write("\n".join(publish(config)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
