"""The unit of a PromQL expression, derived from the names of its metrics. Counts and ratios have none.

Names end as Prometheus wants it: _seconds, _bytes; Triton's _us are microseconds. A rate divides by seconds, a quotient
divides units, a division by 1e6 turns microseconds into seconds, `histogram_quantile` has the unit of the histogram.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import promql_parser as promql

GRAFANA = re.compile(r"\$__rate_interval|\$__range")


@dataclass(frozen=True)
class Unit:
    """`scale` x seconds^s x bytes^b."""

    scale: float = 1.0
    powers: dict[str, int] = field(default_factory=dict)

    def times(self, other: Unit, sign: int = 1) -> Unit:
        keys = {*self.powers, *other.powers}
        powers = {key: self.powers.get(key, 0) + sign * other.powers.get(key, 0) for key in keys}
        return Unit(self.scale * other.scale**sign, {key: power for key, power in powers.items() if power})


NUMBER, SECONDS = Unit(), Unit(powers={"s": 1})
PER_SECOND = Unit(powers={"s": -1})
SUFFIXES = {"_seconds": SECONDS, "_bytes": Unit(powers={"B": 1}), "_us": Unit(1e-6, {"s": 1})}
GRAFANA_UNITS = {
    "s": SECONDS,
    "bytes": SUFFIXES["_bytes"],
    "short": NUMBER,
    "none": NUMBER,
    "percentunit": NUMBER,
    "reqps": PER_SECOND,
    "cps": PER_SECOND,
}
_KEEP = {"increase", "delta", "min_over_time", "max_over_time", "avg_over_time"}
COMPARISONS = {"<", ">", "<=", ">=", "==", "!="}
_SCALES = {1e3, 1e6, 1e9}


class UnitError(Exception):
    """The expression adds or compares what has different units, or uses something this module does not know."""


def parse(expr: str) -> promql.Expr:
    return promql.parse(GRAFANA.sub("1m", expr))


def metrics_of(expr: str) -> set[str]:
    """The names of all metrics in an expression."""
    names: set[str] = set()

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.VectorSelector):
            names.add(node.name)
        if isinstance(node, promql.MatrixSelector):
            names.add(node.vector_selector.name)
        return True

    promql.walk(parse(expr), pre_visit=visit)
    return names


def unit_of(expr: str, records: dict[str, str] | None = None) -> Unit:
    """The unit of an expression; `records` maps the names of recording rules to their expressions.

    Raises:
        UnitError: See there.
    """
    return _unit(parse(expr), records or {})


def _unit(node, records) -> Unit:
    if isinstance(node, promql.NumberLiteral):
        return NUMBER
    if isinstance(node, (promql.MatrixSelector, promql.VectorSelector)):
        return _of_name(getattr(node, "vector_selector", node).name, records)
    if isinstance(node, promql.AggregateExpr):
        return NUMBER if str(node.op) == "count" else _unit(node.expr, records)
    if isinstance(node, promql.Call):
        return _of_call(node, records)
    if isinstance(node, promql.BinaryExpr):
        return _of_binary(node, records)
    if isinstance(node, (promql.ParenExpr, promql.SubqueryExpr)):
        return _unit(node.expr, records)
    raise UnitError(f"no rule for {type(node).__name__}: {node.prettify()}")


def _of_name(name: str, records) -> Unit:
    if ":" in name:
        return unit_of(records[name], records)
    if name.endswith(("_count", "_bucket")):
        return NUMBER
    return _base(re.sub(r"(_sum|_total)$", "", name))


def _base(name: str) -> Unit:
    return next((unit for suffix, unit in SUFFIXES.items() if name.endswith(suffix)), NUMBER)


def _of_call(node, records) -> Unit:
    name, arguments = node.func.name, node.args
    if name == "time":
        return SECONDS
    if name == "absent":
        return NUMBER
    if name in {"rate", "irate"}:
        return _unit(arguments[0], records).times(SECONDS, -1)
    if name in _KEEP:
        return _unit(arguments[0], records)
    if name == "histogram_quantile":
        (bucket,) = metrics_of(arguments[1].prettify())
        return _base(bucket.removesuffix("_bucket"))
    raise UnitError(f"no rule for {name}(): {node.prettify()}")


def _of_binary(node, records) -> Unit:
    op = str(node.op)
    left, right = (_unit(side, records) for side in (node.lhs, node.rhs))
    if op in {"*", "/"}:
        sign = 1 if op == "*" else -1
        value = node.rhs.val if isinstance(node.rhs, promql.NumberLiteral) else None
        return Unit(left.scale * value**-sign, left.powers) if value in _SCALES else left.times(right, sign)
    literal = isinstance(node.rhs, promql.NumberLiteral) and op in COMPARISONS
    if left != right and not literal:
        raise UnitError(f"{left} {op} {right} in {node.prettify()}")
    return left
