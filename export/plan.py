"""`python -m export.plan --artifact DIR`: add a TensorRT plan to an artifact, on the machine that will run it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from export.config import flags_of
from export.exit_codes import PARITY_FAILED, PUBLISHED
from export.tensorrt_config import TensorRTConfig
from mvfoul.command import exit_code_of


@dataclass(frozen=True, kw_only=True)
class AddPlanConfig:
    """Build encoder.plan for this machine's GPU and publish the artifact anew with it.

    The artifact is one of `python -m export --fp16`. The plan is compared with its graphs and its self-test first.
    Exit codes: 0 published, 2 refused, 3 checks failed, 4 no plan can be built.
    """

    artifact: Path
    """The directory that `python -m export` wrote."""
    output: Path | None = None
    """Where to publish. None: in place; the artifact without the plan becomes <artifact>.previous."""
    tensorrt: TensorRTConfig = field(default_factory=TensorRTConfig)

    @property
    def target(self) -> Path:
        """The new artifact's directory, absolute."""
        return (self.output or self.artifact).resolve()

    def command(self) -> str:
        """Return the command line that does the same again."""
        given = flags_of(self, AddPlanConfig(artifact=Path()))
        return shlex.join(["python", "-m", "export.plan", *given])


def main() -> int:
    """Return the exit code."""
    return exit_code_of(_add_plan, when_interrupted="interrupted; nothing was changed")


def _add_plan() -> int:
    config = tyro.cli(AddPlanConfig, prog="python -m export.plan", config=(tyro.conf.FlagCreatePairsOff,))
    from export.add_plan import add_plan_to_artifact

    return PUBLISHED if add_plan_to_artifact(config) else PARITY_FAILED


if __name__ == "__main__":
    sys.exit(main())
