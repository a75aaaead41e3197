"""One thread that runs jobs one after the other, urgent ones first; a cancelled job that has not begun never runs."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[int, int, "Future[Any]", Callable[[], Any]]


class GraphThread:
    """A graph uses all its threads for each call, so calls stand in line; `ThreadPoolExecutor` knows no priority."""

    def __init__(self, name: str = "graphs") -> None:
        self._jobs: list[_Job] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._busy = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait or run."""
        return len(self._jobs) + self._busy

    def submit(self, priority: int, job: Callable[[], T]) -> Future[T]:
        """Queue a job; the lowest priority number runs first, equal ones in order of arrival."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the graph thread is closed")
            heapq.heappush(self._jobs, (priority, next(self._numbers), future, job))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Cancel what waits, finish what runs, end the thread."""
        with self._changed:
            self._closed = True
            for _, _, future, _ in self._jobs:
                future.cancel()
            self._jobs.clear()
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = 0
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                _, _, future, job = heapq.heappop(self._jobs)
                self._busy = 1
            if future.set_running_or_notify_cancel():
                _settle(future, job)


def _settle(future: Future[Any], job: Callable[[], Any]) -> None:
    try:
        result = job()
    except BaseException as error:  # noqa: BLE001  # whoever waits for it decides
        future.set_exception(error)
    else:
        future.set_result(result)
