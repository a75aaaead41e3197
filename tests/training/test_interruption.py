"""Signals and kills: what was saved is whole, what can be saved is, and the exit code says what to do."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from training.checkpoint import load_checkpoint
from training.folder import BEST, LAST
from training.preemption import Stopped, StopRequest, catch_signals, leave_signals_to_the_parent
from training.progress import Progress


def _flags(root, output, *more):
    flags = ["--recipe", "cpu-demo", "--data.root", root, "--output", output, "--clip.num-frames", "2"]
    flags += ["--optim.name", "sgd", "--optim.momentum", "0", "--loop.batch-size", "4", "--loop.epochs", "100000"]
    flags += ["--schedule.warmup-epochs", "0"]
    return [str(flag) for flag in (*flags, *more)]


def _wait_for(path, program):
    while not path.exists():
        assert program.running(), program.err
        time.sleep(0.01)


def test_a_signal_ends_at_once_what_has_nothing_to_save_and_later_is_only_noted():
    with catch_signals() as stop:
        with pytest.raises(Stopped) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.exit_code == 75
        assert stop.requested
    with catch_signals() as stop:
        stop.defer()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # schedulers repeat it
        assert stop.signal == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once():
    stop = StopRequest()
    stop.defer()
    stop.receive(signal.SIGINT)
    with pytest.raises(Stopped) as caught:
        stop.receive(signal.SIGINT)
    assert caught.value.exit_code == 130


def test_a_worker_lets_the_first_sigterm_pass_and_obeys_the_second():
    code = (
        "import os, signal\n"
        "from training.preemption import leave_signals_to_the_parent\n"
        "leave_signals_to_the_parent()\n"
        "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still here\n"), done.stderr
    assert leave_signals_to_the_parent.__doc__


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_with_its_code_and_the_run_goes_on(programs, tiny_dataset, tmp_path, number, code):
    output = tmp_path / "run"
    program = programs.start(_flags(tiny_dataset, output, "--data.workers", "2", "--data.preload-gib", "0"))
    _wait_for(output / LAST, program)
    os.killpg(program.pid, number)  # the workers too, as terminals and torchrun do
    assert program.wait(60) == code, program.err
    last = load_checkpoint(output / LAST)
    there = Progress.of(last, "score").describe()
    assert f"{LAST} holds {there}; nothing is lost. Go on with" in program.out
    assert program.err == ""
    assert (output / "training_history.png").exists()
    epochs = ["--loop.epochs", last.epoch + 1]
    again = programs.start(_flags(tiny_dataset, output, *epochs, "--resume"))
    assert again.wait() == 0, again.err
    assert re.search(rf"resume +{re.escape(str(output / LAST))}, after {there}", again.out)
    assert load_checkpoint(output / LAST).epoch == last.epoch + 1


def test_a_signal_before_the_first_step_leaves_nothing_and_says_so(programs, tiny_dataset, tmp_path):
    output = tmp_path / "run"
    program = programs.start(_flags(tiny_dataset, output, "--clip.size-px", "224", "--clip.num-frames", "50"))
    _wait_for(output / ".lock", program)
    program.kill(signal.SIGTERM)
    assert program.wait(60) == 75
    assert "interrupted" in program.out.lower()
    assert not (output / LAST).exists()


def test_two_runs_cannot_write_into_one_folder_and_a_killed_one_keeps_nobody_out(programs, tiny_dataset, tmp_path):
    output = tmp_path / "run"
    first = programs.start(_flags(tiny_dataset, output, "--data.workers", "1"))
    _wait_for(output / LAST, first)
    second = programs.start(_flags(tiny_dataset, output, "--resume"))
    assert second.wait(60) == 2
    assert re.search(rf"is being written by another run \(process {first.pid} on .*\)\. Wait for it", second.err)
    first.kill()
    first.wait(60)
    epochs = load_checkpoint(output / LAST).epoch
    # Its worker may live for some seconds more: nobody waits for it.
    third = programs.start(_flags(tiny_dataset, output, "--resume", "--loop.epochs", epochs))
    assert third.wait(60) == 0, third.err


@pytest.mark.parametrize("kills", [50])
def test_a_run_that_is_killed_at_any_moment_leaves_a_checkpoint_and_goes_on(programs, tiny_dataset, tmp_path, kills):
    output, moments = tmp_path / "run", random.Random(3)
    flags = _flags(tiny_dataset, output, "--resume", "--save.every-steps", "1", "--save.keep-best", "2")
    seen = []
    for kill in range(kills):
        (output / f".{LAST}.tmp").unlink(missing_ok=True)  # of the kill before: here it tells when a write begins
        program = programs.start(flags)
        if kill % 2 or not (output / LAST).exists():  # while it writes, or anywhere from the start on
            _wait_for(output / f".{LAST}.tmp", program)
        time.sleep(moments.uniform(0.0, 0.6))
        program.kill()
        assert program.wait(60) == -signal.SIGKILL, program.err
        for path in output.glob("*.pth.tar"):
            load_checkpoint(path)
        last = load_checkpoint(output / LAST) if seen or (output / LAST).exists() else None
        seen.append((last.epoch, last.progress["step"]) if last else (0, 0))
    assert seen == sorted(seen)  # never back
    assert len(set(seen)) > kills // 5, seen  # and on: the kills hit runs at work
    epochs = seen[-1][0] + 1
    final = programs.start([*flags, "--loop.epochs", str(epochs)])
    assert final.wait(60) == 0, final.err
    assert load_checkpoint(output / LAST).epoch == epochs
    assert load_checkpoint(output / BEST).epoch <= epochs
    assert not [path.name for path in output.iterdir() if path.suffix in (".tmp", ".link")]
