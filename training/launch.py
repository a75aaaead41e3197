"""`python -m training.launch`: torchrun for pods; one on each node, with torchrun's own flags.

    python -m training.launch --nnodes 2 --nproc-per-node gpu --rdzv-backend c10d \
        --rdzv-endpoint train-0.train.default.svc:29400 -m training --data.root data --output runs/first --resume

The endpoint is node 0's name, and its first label ends in -0: node 1 is train-1.train.default.svc, and so on. In a job
of Kubernetes with `completionMode: Indexed` each pod knows its number. Before torchrun starts, every node waits until
all names have an address, which a pod has once it is placed; after `--placement-timeout-s` it says which have none.
Node 0 hosts the rendezvous and has rank 0.

torchrun ends with 1 whatever its processes say. This ends with what a scheduler can act on: 2 for what would fail
again, 75 for what goes on with the same command and --resume (docs/training.md). A node that ends only because another
one did has 75 too; the other one has the reason.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from mvfoul.command import INTERRUPTED, PREEMPTED, check_flag, exit_code_of
from mvfoul.errors import ConfigError, MVFoulError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

PLACEMENT_TIMEOUT_S: Final = 900.0
_POLL_S: Final = 1.0
_REFUSED: Final = ConfigError.exit_code


class PlacementError(MVFoulError):
    """Not all nodes of the run are there. Counted as a failure, unlike a preemption: somebody has to make room.

    One node counts it for all that gave up together (exit code 1, the others 75). A job counts pods: with one failure
    for each of eight nodes a `backoffLimit` of 8 would allow one try.
    """

    def __init__(self, message: str, *, counted: bool) -> None:
        """Say what is missing, and whether this node is the one that counts it."""
        super().__init__(message)
        self.exit_code = 1 if counted else PREEMPTED


def main() -> int:
    """Return the exit code."""
    return exit_code_of(lambda: launch(sys.argv[1:]))


def launch(argv: Sequence[str]) -> int:
    """Wait for the other nodes, run torchrun, and return what its processes say.

    Raises:
        ConfigError: The flags contradict the number of this node.
        PlacementError: Another node has no address, or does not join.
    """
    own = argparse.ArgumentParser(prog="python -m training.launch", add_help=False, allow_abbrev=False)
    own.add_argument("--placement-timeout-s", type=float, default=PLACEMENT_TIMEOUT_S)
    waiting, rest = own.parse_known_args(argv)
    timeout_s: float = waiting.placement_timeout_s
    check_flag(timeout_s > 0, "--placement-timeout-s", timeout_s, "Use more than 0.")
    # Process 1 of a container ignores the signal otherwise; torchrun has handlers of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))
    # Late: torch takes seconds to load.
    from torch.distributed import run

    args = run.parse_args(rest)  # type: ignore[no-untyped-call]
    nodes = run.parse_min_max_nnodes(args.nnodes)[1]
    host, _, port = args.rdzv_endpoint.rpartition(":")
    names = node_names(host, nodes)
    number = int(os.environ.get("JOB_COMPLETION_INDEX", "0" if nodes == 1 else "-1"))
    args.rdzv_conf = ",".join(
        [*filter(None, [args.rdzv_conf]), f"join_timeout={timeout_s:.0f}", *_place(names, number)]
    )
    if nodes > 1:
        args.local_addr = names[number] if number >= 0 else args.local_addr
        wait_for_addresses(names, timeout_s, number=number)
    if number > 0:
        wait_for_port(host, int(port), timeout_s, number=number)
    return _run(args, nodes, number)


def _place(names: Sequence[str], number: int) -> list[str]:
    """Return what torchrun is told about this node's number; -1: nobody knows, and torchrun compares names.

    Ranks follow the order of the nodes' names, so node 0 has rank 0.
    """
    if number >= len(names):
        raise ConfigError(
            f"this is node {number} (JOB_COMPLETION_INDEX, from 0) of --nnodes {len(names)}. Give the job as many "
            "completions as nodes."
        )
    return [] if number < 0 else [f"is_host={'true' if number == 0 else 'false'}"]


def node_names(host: str, nodes: int) -> tuple[str, ...]:
    """Return the names of all nodes, from that of node 0.

    Raises:
        ConfigError: The name does not say how the others are called.
    """
    if nodes == 1:
        return (host,)
    label, dot, domain = host.partition(".")
    if not label.endswith("-0"):
        raise ConfigError(
            f"--rdzv-endpoint has the host {host!r}. Use the name of pod 0, whose first label ends in -0, so that the "
            f"names of all {nodes} nodes follow from it."
        )
    return tuple(f"{label[:-1]}{number}{dot}{domain}" for number in range(nodes))


def wait_for_addresses(
    names: Sequence[str],
    timeout_s: float,
    *,
    number: int = -1,
    resolve: Callable[[str, None], object] = socket.getaddrinfo,
) -> None:
    """Return when each name has an address.

    Raises:
        PlacementError: One has none after `timeout_s`; all of these are named. Counted by the first node that had one
            meanwhile, or by each that does not know its `number`.
    """
    placed = {number}

    def missing() -> str:
        here = {k for k, name in enumerate(names) if _works(lambda: resolve(name, None))}  # noqa: B023 - called here
        # Also those that have gone since: a node that gives up first takes its address with it.
        placed.update(here)
        return ", ".join(name for k, name in enumerate(names) if k not in here)

    if lacking := _wait(missing, timeout_s, "an address for"):
        raise PlacementError(
            f"after {timeout_s:g} s there is no address for {lacking}: not placed yet, or the number of nodes is "
            "wrong. See `kubectl get pods -o wide` and `kubectl describe pod`; make room, or ask for fewer nodes or "
            "GPUs. This node now gives its GPUs back; the job starts it again while its backoffLimit allows.",
            counted=number == min(placed),
        )


def wait_for_port(host: str, port: int, timeout_s: float, *, number: int) -> None:
    """Return when node 0 listens; each try asks for its address anew, because a new pod has a new one.

    Raises:
        PlacementError: It does not after `timeout_s`. Counted by node 1.
    """

    def missing() -> str:
        return "" if _works(lambda: socket.create_connection((host, port), timeout=5).close()) else f"{host}:{port}"

    if _wait(missing, timeout_s, "the rendezvous at"):
        raise PlacementError(
            f"after {timeout_s:g} s nothing listens at {host}:{port}. Node 0 has an address, but its container does "
            "not run torchrun: see `kubectl describe pod` and its log.",
            counted=number == 1,
        )


def _wait(missing: Callable[[], str], timeout_s: float, what: str) -> str:
    """Return "" when nothing is missing any more, or what is after the time."""
    end = time.monotonic() + timeout_s
    said = ""
    while lacking := missing():
        if time.monotonic() >= end:
            return lacking
        if lacking != said:
            print(f"waiting for {what} {lacking}", file=sys.stderr, flush=True)
            said = lacking
        time.sleep(min(_POLL_S, timeout_s))
    return ""


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _run(args: argparse.Namespace, nodes: int, number: int) -> int:
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError

    try:
        run.run(args)  # type: ignore[no-untyped-call]
    except SignalException as stopped:
        return INTERRUPTED if stopped.sigval == signal.SIGINT else PREEMPTED
    except ChildFailedError as failed:
        return code_of(failed)
    except RendezvousTimeoutError as error:
        raise PlacementError(
            f"not all {nodes} nodes joined at {args.rdzv_endpoint} in time. They have addresses: look at their logs.",
            counted=number <= 0,
        ) from error
    except (RendezvousError, DistError) as error:
        sys.stderr.write(f"the rendezvous at {args.rdzv_endpoint} is gone ({error}): its node ended. See its log.\n")
        return PREEMPTED
    return 0


def code_of(failed: ChildFailedError) -> int:
    """Return the exit code of a node from those of its processes."""
    codes = [failure.exitcode for failure in failed.failures.values()]
    for known in (_REFUSED, PREEMPTED, INTERRUPTED):
        if known in codes:
            return known
    first: int = failed.get_first_failure()[1].exitcode
    return first if first > 0 else 128 - first


if __name__ == "__main__":
    sys.exit(main())
