"""What 1,000 decisions cost, and how many replicas a match day takes, from the benchmark of an engine.

    python benchmarks/cost.py --benchmark runs/first/benchmark/benchmark.json --price-per-hour 2.5
    python benchmarks/cost.py --ms-per-view 583          # a figure of a table, per hour's price 1: machine hours

    machine seconds per decision = views x seconds per view / utilisation
    cost of 1,000 decisions      = 1,000 x machine seconds per decision / 3,600 x price per hour
    replicas                     = decisions per second at the peak x machine seconds, rounded up, and one more

Utilisation is the share of a machine's time that is sold: a live service keeps reserves, or requests wait. A replica is
one machine of the benchmark: its GPU, or its threads. Decoding is on the transformers' CPUs and comes on top, about
40 ms of one core per view (benchmarks/decode.py measures it).

Prices, matches and actions are yours: nothing here knows them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Speed:
    """One engine with so many views in a call."""

    name: str
    seconds_per_view: float


@dataclass(frozen=True)
class Day:
    """What is asked of the service, and what a machine costs."""

    views: float
    utilisation: float
    price_per_hour: float
    matches: int
    actions_per_minute: float
    """Of one match, at the peak."""

    def seconds_per_decision(self, speed: Speed) -> float:
        """Return the machine time that one decision takes, reserves included."""
        return self.views * speed.seconds_per_view / self.utilisation

    def cost_of_1000(self, speed: Speed) -> float:
        """Return the cost of 1,000 decisions, in the price's currency."""
        return 1000 * self.seconds_per_decision(speed) / 3600 * self.price_per_hour

    def replicas(self, speed: Speed) -> int:
        """Return the machines for the peak, and one that may be missing."""
        per_second = self.matches * self.actions_per_minute / 60
        return math.ceil(per_second * self.seconds_per_decision(speed)) + 1


def speeds(benchmark: Path) -> list[Speed]:
    """Return each engine of a benchmark.json at each number of views."""
    document = json.loads(benchmark.read_text())
    return [
        Speed(f"{document['backbone']} {row['engine']}, {row['views']} in a call", 1 / row["clips_per_s"])
        for row in document["rows"]
    ]


def main(arguments: list[str]) -> int:
    """Print the table."""
    options = _parse(arguments)
    measured = speeds(options.benchmark) if options.benchmark else [Speed("given", options.ms_per_view / 1000)]
    day = Day(options.views, options.utilisation, options.price_per_hour, options.matches, options.actions_per_minute)
    print(
        f"{day.views:g} views per decision, {day.utilisation:.0%} used, {day.price_per_hour:g} per machine and hour, "
        f"{day.matches} matches with {day.actions_per_minute:g} actions a minute\n"
    )
    print("| engine | views/s | decisions/s | 1,000 decisions | replicas |")
    print("|---|---|---|---|---|")
    for speed in measured:
        print(
            f"| {speed.name} | {1 / speed.seconds_per_view:.3g} | {1 / day.seconds_per_decision(speed):.3g} "
            f"| {day.cost_of_1000(speed):.3g} | {day.replicas(speed)} |"
        )
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--benchmark", type=Path, help="benchmark.json of `python -m export.benchmark`")
    source.add_argument("--ms-per-view", type=float, help="milliseconds, from a table")
    parser.add_argument("--views", type=float, default=3.0, help="of a decision, on average (default: 3)")
    parser.add_argument("--utilisation", type=float, default=0.5, help="share of the time that is used (default: 0.5)")
    parser.add_argument("--price-per-hour", type=float, default=1.0, help="of one machine (default: 1)")
    parser.add_argument("--matches", type=int, default=10, help="at the same time (default: 10)")
    parser.add_argument("--actions-per-minute", type=float, default=2.0, help="of one match, at the peak (default: 2)")
    options = parser.parse_args(arguments)
    if not 0 < options.utilisation <= 1:
        parser.error(f"--utilisation is {options.utilisation}. Use more than 0, up to 1.")
    if min(options.views, options.matches, options.actions_per_minute, options.ms_per_view or 1) <= 0:
        parser.error("--views, --matches, --actions-per-minute and --ms-per-view must be more than 0.")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
