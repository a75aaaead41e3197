"""The line in front of graphs and decoders: urgent first, cancelled never, deadlines kept."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from mvfoul.errors import DeadlineError
from serving.call import BULK, LIVE, Call
from serving.priority_pool import PriorityPool


@pytest.fixture
def thread():
    made = PriorityPool(1, "test")
    yield made
    made.close()


@pytest.fixture
def held(thread):
    """An event that holds the thread until it is set."""
    gate, started = threading.Event(), threading.Event()

    def hold():
        started.set()
        assert gate.wait(30)

    thread.submit(LIVE, hold)
    assert started.wait(30)
    yield gate
    gate.set()


def test_urgent_jobs_overtake_and_equal_ones_keep_their_order(thread, held):
    done = []
    jobs = [
        thread.submit(priority, lambda name=name: done.append(name))
        for priority, name in [(BULK, "bulk 1"), (LIVE, "live 1"), (BULK, "bulk 2"), (LIVE, "live 2")]
    ]
    assert thread.depth == 5
    held.set()
    for job in jobs:
        job.result(30)
    assert done == ["live 1", "live 2", "bulk 1", "bulk 2"]


def test_a_cancelled_job_never_runs(thread, held):
    done = []
    cancelled = thread.submit(LIVE, lambda: done.append("cancelled"))
    other = thread.submit(LIVE, lambda: done.append("other"))
    assert cancelled.cancel()
    held.set()
    other.result(30)
    assert done == ["other"]


def test_an_error_reaches_who_waits_and_the_thread_goes_on(thread):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        thread.submit(LIVE, fail).result(30)
    assert thread.submit(LIVE, lambda: 7).result(30) == 7


def test_closing_cancels_what_waits_and_takes_no_more(thread, held):
    waiting = thread.submit(LIVE, lambda: None)
    closing = threading.Thread(target=thread.close)
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result(30)
    held.set()
    closing.join(30)
    with pytest.raises(RuntimeError, match="closed"):
        thread.submit(LIVE, lambda: None)


def test_a_passed_deadline_is_an_error_and_none_is_for_ever():
    assert Call().remaining_s() is None
    with pytest.raises(DeadlineError):
        Call(deadline=time.monotonic() - 1).remaining_s()


def test_the_loop_can_wait_for_a_job(thread):
    async def ask():
        return await asyncio.wrap_future(thread.submit(LIVE, lambda: 7))

    assert asyncio.run(ask()) == 7


def test_several_threads_run_side_by_side_and_urgent_jobs_still_overtake():
    pool, gate, both = PriorityPool(2, "test"), threading.Event(), threading.Barrier(3)
    done = []

    def hold():
        both.wait(30)
        assert gate.wait(30)

    held = [pool.submit(LIVE, hold) for _ in range(2)]
    both.wait(30)  # both run at once, or this breaks
    jobs = [pool.submit(priority, lambda p=priority: done.append(p)) for priority in (BULK, BULK, LIVE)]
    assert pool.depth == 5
    gate.set()
    for job in (*held, *jobs):
        job.result(30)
    assert done[0] == LIVE
    pool.close()
    assert pool.depth == 0
