import os
import signal
import subprocess
import sys

import pytest

from mvfoul.command import INTERRUPTED, exit_code_of
from mvfoul.errors import InvalidClipError


def test_work_that_ends_gives_its_own_exit_code():
    assert exit_code_of(lambda: 3) == 3


def test_an_error_that_the_user_can_cure_is_one_line_on_stderr(capsys):
    def work():
        raise InvalidClipError("clip_0.mp4 is empty.")

    assert exit_code_of(work) == InvalidClipError.exit_code
    assert capsys.readouterr().err == "error: clip_0.mp4 is empty.\n"


def test_ctrl_c_says_what_is_left(capsys):
    def work():
        raise KeyboardInterrupt

    assert exit_code_of(work, when_interrupted="nothing was changed") == INTERRUPTED
    assert capsys.readouterr().err == "\nnothing was changed\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)


def test_sigterm_lets_a_command_stop_what_it_started(repo_root):
    script = """
import subprocess, sys, time
from mvfoul.command import exit_on_sigterm
exit_on_sigterm()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
try:
    print(child.pid, flush=True)
    time.sleep(60)
finally:
    child.terminate()
    child.wait()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=repo_root)
    try:
        child = int(process.stdout.readline())
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
