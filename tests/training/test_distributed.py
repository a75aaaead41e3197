"""Processes that agree, and that end together."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest
import torch

from mvfoul.errors import ConfigError
from training.distributed import World, open_world, world_of

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}

PROGRAM = """
import json, sys, time, torch
from datetime import timedelta
from mvfoul.command import exit_code_of
from mvfoul.errors import ConfigError
from training.distributed import open_world
def work():
    with open_world("cpu", timeout=timedelta(seconds=60)) as world:
        BODY
    return 0
sys.exit(exit_code_of(work))
"""


def _program(body):
    return PROGRAM.replace("BODY", body)


def test_without_torchrun_there_is_one_process_and_nothing_to_agree_on(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "left over")
    with open_world("cpu") as world:
        assert world == World()
        assert world.is_main
        tensor = torch.tensor([1.0, 2.0])
        assert world.sum(tensor) is tensor
        assert (world.any(True), world.any(False), world.gather("x"), world.from_main(3)) == (True, False, ["x"], 3)
        with world.one_per_machine_first():
            world.barrier()


def test_torchruns_environment_is_read():
    assert world_of(TORCHRUN) == World(rank=1, size=2, local_rank=1)
    assert not world_of(TORCHRUN).is_main
    assert world_of({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}) == World()


@pytest.mark.parametrize("missing", sorted(TORCHRUN))
def test_a_half_set_environment_is_refused_with_what_is_missing(missing):
    environment = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ConfigError, match=f"but not {missing}.*torchrun --nproc-per-node N"):
        world_of(environment)


@pytest.mark.parametrize(("name", "value"), [("RANK", "x"), ("RANK", "2"), ("LOCAL_RANK", "-1"), ("WORLD_SIZE", "0")])
def test_nonsense_in_the_environment_is_refused(name, value):
    with pytest.raises(ConfigError, match="Start with torchrun"):
        world_of({**TORCHRUN, name: value})


def test_two_ranks_sum_gather_and_decide_the_same(programs):
    body = (
        "mine = torch.tensor([1.0, float(world.rank)], dtype=torch.float64); "
        "print(json.dumps([world.sum(mine).tolist(), mine.tolist(), world.any(world.rank == 1), world.any(False), "
        "world.gather({'rank': world.rank}), world.from_main(world.rank)]))"
    )
    ranks = programs.ranks([], code=_program(body))
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].err + ranks[1].err
    for number, rank in enumerate(ranks):
        expected = [[2.0, 1.0], [1.0, float(number)], True, False, [{"rank": 0}, {"rank": 1}], 0]
        assert json.loads(rank.out) == expected


def test_an_error_on_one_rank_ends_the_other_one_too_with_its_sentence_and_code(programs):
    # Rank 0 waits for nothing that could fail: only the watch can end it.
    body = "time.sleep(2 * world.rank)\n        if world.rank: raise ConfigError('no GPU 7')\n        time.sleep(100)"
    started = time.monotonic()
    main, other = programs.ranks([], code=_program(body))
    assert (main.wait(), other.wait()) == (2, 2)
    assert main.err == "error: rank 1: no GPU 7\n"
    assert other.err.endswith("error: no GPU 7\n")
    assert time.monotonic() - started < 60  # not the 100 s of the sleep, not the timeout


def test_the_same_error_on_all_ranks_is_said_once_on_the_first(programs):
    main, other = programs.ranks([], code=_program("raise ConfigError('nothing to train')"))
    assert (main.wait(), other.wait()) == (2, 2)
    assert len(re.findall("nothing to train", main.err)) == 1
    assert "Traceback" not in main.err + other.err


def test_a_killed_rank_is_noticed_by_the_other_one(programs):
    body = "print('in', flush=True)\n        while True: time.sleep(0.1); world.barrier()"
    main, other = programs.ranks([], code=_program(body))
    while not (other.out and main.out):
        assert main.running(), main.err
        time.sleep(0.05)
    other.kill(signal.SIGKILL)
    assert main.wait() == 75, "the other one has the reason, this one only has to come again"
    assert re.search(r"connection to another process of the run was lost.*--resume", main.err)
    assert "Traceback" not in main.err
