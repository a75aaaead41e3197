"""What `python -m training.launch` adds to torchrun: names of nodes, waiting for them, exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mvfoul.command import PREEMPTED
from mvfoul.errors import ConfigError
from training.launch import PlacementError, code_of, node_names, wait_for_addresses, wait_for_port


def test_the_names_of_all_nodes_follow_from_that_of_node_0():
    assert node_names("train-0.train.vars.svc", 3) == (
        "train-0.train.vars.svc",
        "train-1.train.vars.svc",
        "train-2.train.vars.svc",
    )
    assert node_names("anything", 1) == ("anything",)
    with pytest.raises(ConfigError, match=r"'head'.*-0"):
        node_names("head", 2)


def test_node_0_comes_first_in_the_order_of_names_that_gives_the_ranks():
    for nodes in (2, 11, 120):
        names = node_names("train-0.train.vars.svc", nodes)
        assert min(names) == names[0]


def test_a_name_without_an_address_is_asked_for_again():
    answers = iter([OSError("unknown"), OSError("unknown"), None])

    def resolve(_name, _port):
        answer = next(answers)
        if answer:
            raise answer

    wait_for_addresses(["train-0"], 30, resolve=resolve)
    assert next(answers, "all asked") == "all asked"


def test_pods_that_are_not_placed_are_named_when_the_time_is_over(capsys):
    def resolve(name, _port):
        if name != "train-0":
            raise OSError(name)

    with pytest.raises(PlacementError, match=r"after 0\.2 s there is no address for train-1, train-2: not placed yet"):
        wait_for_addresses(["train-0", "train-1", "train-2"], 0.2, resolve=resolve)
    assert capsys.readouterr().err == "waiting for an address for train-1, train-2\n"


def _exit_code(work):
    with pytest.raises(PlacementError) as error:
        work()
    return error.value.exit_code


def test_nodes_that_give_up_together_count_one_failure():
    """A job counts pods; each of them counting would use up its backoffLimit in the first round."""
    names = node_names("train-0.train.vars.svc", 9)

    def codes(lacking, resolve):
        placed = [k for k in range(9) if k not in lacking]
        return {k: _exit_code(lambda k=k: wait_for_addresses(names, 0.01, number=k, resolve=resolve)) for k in placed}

    for lacking, counting in (({8}, 0), ({0, 4}, 1)):

        def resolve(name, _port, lacking=lacking):
            if names.index(name) in lacking:
                raise OSError(name)

        assert {k for k, code in codes(lacking, resolve).items() if code == 1} == {counting}
        assert set(codes(lacking, resolve).values()) == {1, PREEMPTED}
    assert [_exit_code(lambda k=k: wait_for_port("127.0.0.1", 1, 0.01, number=k)) for k in (1, 2, 3)] == [1, 75, 75]


def test_a_node_that_gave_up_first_and_took_its_address_along_has_counted():
    asked = []

    def resolve(name, _port):
        asked.append(name)
        if name == "train-2" or (name == "train-0" and asked.count(name) > 1):
            raise OSError(name)

    names = ("train-0", "train-1", "train-2")
    assert _exit_code(lambda: wait_for_addresses(names, 0.2, number=1, resolve=resolve)) == PREEMPTED
    assert asked.count("train-0") > 1


def test_a_node_waits_until_node_0_listens_and_says_where_nobody_does():
    with socket.socket() as later:
        later.bind(("127.0.0.1", 0))
        port = later.getsockname()[1]
        with pytest.raises(PlacementError, match=f"nothing listens at 127.0.0.1:{port}"):
            wait_for_port("127.0.0.1", port, 0.1, number=1)
        threading.Timer(0.2, later.listen).start()
        wait_for_port("127.0.0.1", port, 30, number=1)


@pytest.mark.parametrize(
    ("codes", "expected"), [([1, 75], 75), ([75, 2], 2), ([1, 1], 1), ([-9, -15], 137), ([3], 3), ([130], 130)]
)
def test_a_node_ends_with_what_its_processes_say(codes, expected):
    failures = {rank: ProcessFailure(rank, 100 + rank, code, "") for rank, code in enumerate(codes)}
    assert code_of(ChildFailedError("training", failures)) == expected


def test_more_pods_than_nodes_are_refused():
    command = [sys.executable, "-m", "training.launch", "--nnodes=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=train-0.train:29400", "-m", "training"]
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 2
    assert "this is node 2 (JOB_COMPLETION_INDEX, from 0) of --nnodes 2" in done.stderr


def test_a_pod_that_waits_for_others_and_is_preempted_comes_again():
    command = [sys.executable, "-m", "training.launch", "--nnodes=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=train-0.invalid:29400", "-m", "training"]
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "1"}
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert waiting.stderr.readline() == "waiting for an address for train-0.invalid, train-1.invalid\n"
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(30) == PREEMPTED
    finally:
        waiting.kill()
        waiting.wait()
        waiting.stderr.close()
