"""`python -m serving.live.audit verify runs/audit`: is the log whole, and are the clips that it names?

Exit codes: 0 whole, 1 broken (each fault is named), 2 bad usage.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mvfoul.command import exit_code_of
from mvfoul.errors import ConfigError
from serving.live.audit import LINES, Verdict, verify
from serving.live.clips import clip_faults

_LOOKS = 5
_PAUSE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Check an audit log: its chain of hashes, its end, and the clips that it names.

    Exit codes: 0 whole, 1 broken, 2 bad usage.
    """

    command: Annotated[Literal["verify"], tyro.conf.Positional]
    """What to do."""
    directory: Annotated[Path, tyro.conf.Positional]
    """The directory that `python -m serving.live --audit-dir` wrote."""
    expect: str = ""
    """A head that was noted before; the log must contain it."""


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_verify)


def _settled(config: VerifyConfig) -> Verdict:
    """Look again at what seems broken: a console may be writing, and the log and its head are two files."""
    for _ in range(_LOOKS - 1):
        verdict = verify(config.directory, expect=config.expect)
        if not verdict.faults:
            return verdict
        time.sleep(_PAUSE_S)
    return verify(config.directory, expect=config.expect)


def _verify() -> int:
    config = tyro.cli(VerifyConfig, prog="python -m serving.live.audit")
    if not (config.directory / LINES).is_file():
        raise ConfigError(f"{config.directory} has no {LINES}; pass the directory given as --audit-dir.")
    verdict = _settled(config)
    faults, remarks = [*verdict.faults], [*verdict.remarks]
    if not faults:
        clip_problems, kept, removed = clip_faults(config.directory)
        faults += clip_problems
        remarks.append(f"{kept} clips are kept and unchanged, {removed} were removed by the policy")
    for remark in remarks:
        sys.stdout.write(f"note: {remark}\n")
    for fault in faults:
        sys.stdout.write(f"BROKEN: {fault}\n")
    if not faults:
        sys.stdout.write(f"whole: {verdict.lines} lines, head {verdict.head}\n")
    return 1 if faults else 0
