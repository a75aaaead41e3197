"""Two processes train as one does: the same batches, the same losses within rounding, the same metrics."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from training.checkpoint import load_checkpoint
from training.folder import CONFIG, LAST

# MViT has layer norms only: with batch norms, the statistics of half a batch are others, whatever the sums are. Each
# rank draws its own paths to drop; to compare losses none is dropped.
CODE = "import training.model.mvit as m; m._STOCHASTIC_DEPTH = 0.0\n"
CODE += "import training.__main__ as m, sys; sys.exit(m.main())"
FLAGS = ["--recipe", "cpu-demo", "--model.backbone", "mvit_v2_s", "--model.aggregation", "attention"]
FLAGS += ["--clip.num-frames", "4", "--clip.size-px", "32", "--optim.name", "sgd", "--optim.momentum", "0"]
FLAGS += ["--loop.batch-size", "6", "--loop.epochs", "2", "--optim.lr", "0.01", "--data.workers", "0"]


def _flags(root, output, *more):
    return [str(flag) for flag in (*FLAGS, "--data.root", root, "--output", output, *more)]


def _assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        if not name.startswith(("seconds", "system/")):
            assert one[name] == pytest.approx(other[name], rel=2e-4), name


@pytest.fixture(scope="module")
def one_process(programs, tiny_dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("one") / "run"
    program = programs.start(_flags(tiny_dataset, output), code=CODE)
    assert program.wait() == 0, program.err
    return load_checkpoint(output / LAST)


def test_two_ranks_have_the_losses_and_metrics_of_one_process_and_the_first_writes(
    programs, tiny_dataset, tmp_path, one_process
):
    output = tmp_path / "run"
    main, other = programs.ranks(_flags(tiny_dataset, output), code=CODE)
    assert (main.wait(), other.wait()) == (0, 0), main.err + other.err
    assert other.out == other.err == ""
    assert "2/2" in main.out
    last = load_checkpoint(output / LAST)
    assert last.world["size"] == 2
    # 16 actions in batches of 6: the last has 4, and 8 actions of valid are 4 for each rank, none twice.
    _assert_close(one_process.histories, last.histories)
    assert one_process.evaluation["actions"] == last.evaluation["actions"] == 8
    assert json.loads((output / CONFIG).read_text())["starts"][0]["size"] == 2


def test_a_run_goes_on_with_another_number_of_processes_and_says_what_changes(programs, tiny_dataset, tmp_path):
    output = tmp_path / "run"
    first = programs.start(_flags(tiny_dataset, output, "--loop.epochs", "100", "--save.every-steps", "1"))
    while not (output / LAST).exists():
        assert first.running(), first.err
        time.sleep(0.01)
    first.kill(signal.SIGTERM)
    assert first.wait() == 75, first.err
    stopped = load_checkpoint(output / LAST)
    ends_at = ["--loop.epochs", max(2, stopped.epoch + 1)]
    main, other = programs.ranks(_flags(tiny_dataset, output, "--resume", "--schedule.name", "constant", *ends_at))
    assert (main.wait(), other.wait()) == (2, 2)
    assert "--schedule.name was 'cosine', is 'constant'" in main.err
    main, other = programs.ranks(_flags(tiny_dataset, output, "--resume", *ends_at))
    assert (main.wait(), other.wait()) == (0, 0), main.err + other.err
    assert "1 process before, 2 processes now: each step still sees the same actions" in main.out
    assert load_checkpoint(output / LAST).world["size"] == 2


def test_a_signal_to_one_rank_saves_and_stops_both(programs, tiny_dataset, tmp_path):
    output = tmp_path / "run"
    main, other = programs.ranks(_flags(tiny_dataset, output, "--loop.epochs", "1000", "--save.every-steps", "1"))
    while not (output / LAST).exists():
        assert main.running(), main.err + other.err
        time.sleep(0.01)
    other.kill(signal.SIGTERM)
    assert (main.wait(60), other.wait(60)) == (75, 75), main.err + other.err
    assert "nothing is lost" in main.out
    assert main.err == other.err == ""
    load_checkpoint(output / LAST)


def test_a_batch_that_is_too_small_for_the_processes_ends_both_with_one_sentence(programs, tiny_dataset, tmp_path):
    main, other = programs.ranks(_flags(tiny_dataset, tmp_path / "run", "--loop.batch-size", "1"))
    assert (main.wait(60), other.wait(60)) == (2, 2)
    assert len(re.findall(r"--loop\.batch-size is 1, .*2 processes.*--loop\.batch-size 2 or more", main.err)) == 1
