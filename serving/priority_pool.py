"""Threads that run jobs, urgent ones first; a cancelled job that has not begun never runs.

`ThreadPoolExecutor` knows no priority.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[int, int, "Future[Any]", Callable[[], Any]]


class PriorityPool:
    """With one thread: a line. A graph uses all its threads for each call, so calls of graphs stand in one."""

    def __init__(self, workers: int, name: str) -> None:
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._busy = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait or run."""
        return len(self._jobs) + self._busy

    def submit(self, priority: int, job: Callable[[], T]) -> Future[T]:
        """Queue a job; the lowest priority number runs first, equal ones in order of arrival."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed")
            heapq.heappush(self._jobs, (priority, next(self._numbers), future, job))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Cancel what waits, finish what runs, end the threads."""
        with self._changed:
            self._closed = True
            for _, _, future, _ in self._jobs:
                future.cancel()
            self._jobs.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                _, _, future, job = heapq.heappop(self._jobs)
                self._busy += 1
            if future.set_running_or_notify_cancel():
                _settle(future, job)
            with self._changed:
                self._busy -= 1


def _settle(future: Future[Any], job: Callable[[], Any]) -> None:
    try:
        result = job()
    except BaseException as error:  # noqa: BLE001  # whoever waits for it decides
        future.set_exception(error)
    else:
        future.set_result(result)
