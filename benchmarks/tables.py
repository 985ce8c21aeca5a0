"""Markdown tables of numbers, printed by the benchmarks and shown on the page of results."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from experiments import markdown

table = partial(markdown.table, align="---:")
split_table = partial(markdown.split_table, align="---:")


def number(value: float) -> str:
    """A number with three significant digits.

    >>> number(1234.5), number(12.345), number(0.12345)
    ('1234', '12.3', '0.123')
    """
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"


def milliseconds(timing: Mapping[str, Any] | None) -> str:
    """Median and quartiles of a stored timing, or a dash where nothing was measured.

    >>> milliseconds({"median": 0.002, "lower_quartile": 0.0015, "upper_quartile": 0.0121})
    '2.00 (1.50–12.1)'
    """
    if timing is None:
        return "–"
    median, lower, upper = (
        number(1e3 * timing[key]) for key in ("median", "lower_quartile", "upper_quartile")
    )
    return f"{median} ({lower}–{upper})"


def goal(
    what: str,
    value: float,
    at_least: float | None = None,
    at_most: float | None = None,
    aim: float | None = None,
) -> dict[str, Any]:
    """A number with its target; without a bound it is only shown.

    >>> goal("speed", 8.0, at_least=7, aim=10)["reached"]
    True
    """
    reached = None
    if at_least is not None:
        reached = value >= at_least
    elif at_most is not None:
        reached = value <= at_most
    bounds = {"at_least": at_least, "at_most": at_most, "aim": aim}
    return {"what": what, "value": value, **bounds, "reached": reached}


def ratio_table(goals: Iterable[Mapping[str, Any]]) -> str:
    """A table of the measured ratios of a report, for users, without targets."""
    return table(["ratio", "measured"], ([each["what"], number(each["value"])] for each in goals))


def goal_table(goals: Iterable[Mapping[str, Any]]) -> str:
    """A table with a row for each goal of a report."""
    return table(["ratio", "measured", "target", "aim", "reached"], map(_goal_row, goals))


def _goal_row(goal: Mapping[str, Any]) -> list[str]:
    low = goal["at_least"] is not None
    bound = goal["at_least"] if low else goal["at_most"]
    sign = "≥" if low else "≤"
    reached = {None: "–", True: "yes", False: "**no**"}[goal["reached"]]
    return [goal["what"], number(goal["value"]), *_limits(sign, bound, goal["aim"]), reached]


def _limits(sign: str, *values: float | None) -> list[str]:
    return ["–" if value is None else f"{sign} {value:g}" for value in values]
