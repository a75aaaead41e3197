from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import tyro

from export.config import DataConfig, ExportConfig, Tolerance
from mvfoul.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden" / "help.txt"


def test_help_is_the_golden_text(run_export, tmp_path):
    """Changed on purpose? `COLUMNS=100 NO_COLOR=1 python -m export --help > tests/export/golden/help.txt`."""
    shown = run_export("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert shown.stdout == GOLDEN.read_text()


def test_the_target_stands_beside_the_checkpoint_unless_it_is_named(tmp_path):
    assert ExportConfig(ckpt=tmp_path / "best.pth.tar").target == tmp_path / "artifact"
    assert ExportConfig(ckpt=tmp_path / "best.pth.tar", output=tmp_path / "x" / ".." / "y").target == tmp_path / "y"


@pytest.mark.parametrize(
    "config",
    [
        ExportConfig(ckpt=Path("a b/best.pth.tar")),
        ExportConfig(
            ckpt=Path("best.pth.tar"),
            output=Path("out"),
            data=DataConfig(root=Path("data"), max_actions=3),
            split="valid",
            opset=20,
            fp16=True,
            tolerance=Tolerance(logits=1e-5, undecided_margin=0.01),
        ),
    ],
)
def test_the_command_that_is_printed_does_the_same_again(config):
    words = shlex.split(config.command())
    assert words[:3] == ["python", "-m", "export"]
    assert tyro.cli(ExportConfig, args=words[3:], config=(tyro.conf.FlagCreatePairsOff,)) == config


def test_config_json_tells_nothing_of_the_machine(tmp_path):
    config = ExportConfig(ckpt=tmp_path / "best.pth.tar", data=DataConfig(root=tmp_path / "mvfoul"))
    document = json.dumps(config.to_json())
    assert str(tmp_path) not in document
    assert config.to_json()["ckpt"] == "best.pth.tar"
    assert config.to_json()["data"]["root"] == "mvfoul"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ExportConfig(ckpt=Path("x"), opset=17), "--opset is 17; use 18 to"),
        (lambda: ExportConfig(ckpt=Path("x"), opset=99), "--opset is 99; use 18 to"),
        (lambda: Tolerance(undecided_margin=0.0), "--tolerance.undecided-margin is 0.0; it must be above 0"),
        (lambda: Tolerance(logits=float("nan")), "--tolerance.logits is nan"),
        (lambda: ExportConfig(ckpt=Path("x"), split="valid"), "add --data.root DIR"),
        (lambda: DataConfig(max_actions=-1), "--data.max-actions is -1; use 1 or more, or 0 for all"),
        (lambda: Tolerance(fp16_cosine=1.5), "--tolerance.fp16-cosine is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_nonsense_is_refused_with_flag_value_and_cure(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
