"""Starts Python programs that have the heavy imports done: a line of JSON in, one out per start and per end.

{"code": ..., "argv": [...], "env": {...}, "out": file, "err": file}  ->  {"pid": 7}, and later {"ended": 7, "code": 0}

Never runs a step of training itself: torch's autograd does not survive a fork after its first use.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import traceback

import torch

import training.run  # noqa: F401


def _child(order: dict) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    os.environ.update(order["env"])
    for descriptor, name in ((1, order["out"]), (2, order["err"])):
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(target, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = order["argv"]
    code = 1
    try:
        exec(order["code"], {"__name__": "__main__"})  # noqa: S102
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  (as the interpreter would)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    selector.register(reader, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj == reader:
                os.read(reader, 4096)
                _report_ended()
            elif line := sys.stdin.readline():
                pid = os.fork()
                if not pid:
                    _child(json.loads(line))
                print(json.dumps({"pid": pid}), flush=True)
            else:
                return


def _report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


main()
