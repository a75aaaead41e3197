"""The processes of one run: `torchrun` starts them, this file lets them agree.

    with open_world(device) as world:      one process without torchrun, else all that it started
        world.sum(tensor)                  the same sum everywhere
        world.any(flag)                    one decision for all

Every method but `is_main` must be called by all ranks, in the same order. With one process they do nothing.

When one rank fails, the others may wait for it inside a collective operation of the GPU. So the sentence of the failure
travels beside the collectives, through torchrun's key-value store: every rank has a thread that looks there, and ends
its process. What this does not cover: a rank that is killed says nothing; the others notice a lost connection (at once
on the same machine and with gloo) or run into the timeout.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from mvfoul.command import INTERRUPTED
from mvfoul.errors import ConfigError, LostRankError, MVFoulError
from training.preemption import Stopped

TIMEOUT: Final = timedelta(minutes=10)
"""A rank that waits this long for another gives up. assumption: no validation batch or checkpoint takes longer."""
_POLL_S: Final = 0.25
_SEEN_S: Final = 5.0
"""How long a failing rank stays for the others to read why: with it the store may go."""
_FAILURE: Final = "mvfoul/failure"
_SEEN: Final = "mvfoul/seen"
_NEEDED: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine; its GPU."""
    local_size: int = 1
    """Processes of this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of every rank's tensor, on its device; the argument is left as it is."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Return whether the flag is up on at least one rank."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank; it is pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Return what rank 0 has; it is pickled."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Make all ranks' tensors those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum(torch.zeros(()))

    @contextmanager
    def one_per_machine_first(self) -> Iterator[None]:
        """Let the first process of each machine go ahead: what it downloads, the others find."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()


def world_of(environment: Mapping[str, str]) -> World:
    """Read torchrun's variables; none of them means one process.

    Raises:
        ConfigError: Some are set and some are not, or they contradict each other.
    """
    if not any(name in environment for name in _NEEDED[:3]):
        return World()
    if missing := [name for name in _NEEDED if name not in environment]:
        held = ", ".join(name for name in _NEEDED if name in environment)
        raise ConfigError(
            f"the environment has {held} but not {', '.join(missing)}. Start with torchrun --nproc-per-node N "
            "-m training ..., which sets them all, or unset them all for one process."
        )
    try:
        rank, size, local_rank = (int(environment[name]) for name in _NEEDED[:3])
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}. Start with torchrun.") from error
    if not (0 <= local_rank <= rank < size):
        raise ConfigError(
            f"RANK {rank}, WORLD_SIZE {size} and LOCAL_RANK {local_rank} contradict. Start with torchrun."
        )
    return World(rank, size, local_rank, local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def open_world(device: str = "auto", *, timeout: timedelta = TIMEOUT) -> Iterator[World]:
    """Join the other processes of the run, and leave them at the end.

    A failure on one rank ends all of them, with its exit code; rank 0 says whose failure it was.

    Args:
        device: As `--device`: GPUs talk by NCCL, CPUs by gloo. Small things always go by gloo.
        timeout: Of one collective operation.

    Raises:
        ConfigError: The environment is half set, or there are more processes than GPUs on this machine.
        LostRankError: Another process ended without a word.
    """
    world = world_of(os.environ)
    if world.size == 1:
        yield world
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        _take_gpu(world)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timeout)
    watch = _Watch(world)
    try:
        yield world
        world.barrier()  # watched still: another rank may fail after this one is through
        watch.stop()
    except BaseException as error:
        watch.stop()
        watch.fail(error)
        raise
    dist.destroy_process_group()


def _take_gpu(world: World) -> None:
    count = torch.cuda.device_count()
    if world.local_rank >= count:
        raise ConfigError(
            f"--nproc-per-node is more than the {count} GPUs of this machine: there is none for local rank "
            f"{world.local_rank}. Start as many processes as GPUs, or use --device cpu."
        )
    torch.cuda.set_device(world.local_rank)


class _Watch:
    """Looks for another rank's failure, and tells of the own one."""

    def __init__(self, world: World) -> None:
        self._world = world
        # A connection of its own: the process group's is locked while it waits.
        self._store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)  # type: ignore[attr-defined]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="failure-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_POLL_S):
            try:
                failed = self._store.check([_FAILURE])
            except (RuntimeError, dist.DistError):  # its host is gone: the collectives say so to the main thread
                return
            if failed:
                self._end(json.loads(self._store.get(_FAILURE)))

    def fail(self, error: BaseException) -> None:
        """Tell the others why this rank ends; raise for what another rank told first."""
        if lost := _lost_connection(error):
            # Its own failure may be on the way still.
            time.sleep(4 * _POLL_S)
            error = lost
        failure = {"rank": self._world.rank, "code": _exit_code(error), "message": _sentence(error)}
        with suppress(RuntimeError, dist.DistError):
            first = json.loads(self._store.compare_set(_FAILURE, "", json.dumps(failure)))
            if first["rank"] != self._world.rank:
                self._end(first)
            self._wait_until_seen()
        if lost:
            raise lost

    def _wait_until_seen(self) -> None:
        end = time.monotonic() + _SEEN_S
        while self._store.add(_SEEN, 0) < self._world.size - 1 and time.monotonic() < end:
            time.sleep(0.05)

    def _end(self, failure: Mapping[str, Any]) -> None:
        """End this process as the failing rank does. The main thread may be stuck in a collective: it is not asked."""
        if self._world.is_main:
            sys.stdout.flush()
            sys.stderr.write(f"error: rank {failure['rank']}: {failure['message']}\n")
            sys.stderr.flush()
        with suppress(RuntimeError, dist.DistError):
            self._store.add(_SEEN, 1)
        # Without torchrun's agent the store lives in rank 0: the failing rank still reads that it was heard.
        time.sleep(2 * _POLL_S if self._world.is_main else 0)
        os._exit(failure["code"])


def _exit_code(error: BaseException) -> int:
    if isinstance(error, (MVFoulError, Stopped)):
        return error.exit_code
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _sentence(error: BaseException) -> str:
    if isinstance(error, MVFoulError):
        return str(error)
    return "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def _lost_connection(error: BaseException) -> LostRankError | None:
    """Return what to say where the error is only the echo of another process's end."""
    words = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
    if not isinstance(error, (dist.DistError, RuntimeError)) or not any(word in str(error) for word in words):
        return None
    return LostRankError(
        f"the connection to another process of the run was lost ({str(error).splitlines()[0]}). It was killed or its "
        "machine is gone: see the end of its output. Go on with the same command and --resume."
    )
