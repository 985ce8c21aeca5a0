"""Runs that differ in their seeds alone, as one entry of a table."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, mode, stdev
from typing import Any

from diffstride.examples.groups import LEARNED, POOLINGS
from diffstride.examples.published import Figure, find_published
from diffstride.examples.rows import CHOSEN, Row

NAMES = {
    "strided": "strided convolution",
    "spectral": "spectral pooling",
    "diffstride": "DiffStride",
    "reference": "the published layer",
    "max": "max pooling",
    "blur": "blur pooling",
}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


@dataclass(frozen=True)
class Entry:
    """The runs of one kind; at least one."""

    rows: tuple[Row, ...]

    def __getitem__(self, key: str) -> Any:
        """What the runs have in common by a key of the rows, the mean of a number."""
        values = [row[key] for row in self.rows]
        return values[0] if key in CHOSEN else mean(values)

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self.rows)

    @property
    def accuracy(self) -> float:
        """Mean test accuracy in percent."""
        return self["test_accuracy"]

    @property
    def spread(self) -> float | None:
        """Standard deviation of the test accuracy over the seeds, of two runs or more."""
        return stdev(row["test_accuracy"] for row in self.rows) if self.count > 1 else None

    @property
    def dataset(self) -> str:
        """The data set's name for people."""
        name = str(self["dataset"])
        return DATASETS.get(name, name)

    @property
    def start(self) -> str:
        """The strides that the runs start from, those of two axes as height x width."""
        strides = self["strides_start"]
        return ",".join("x".join(map(str, s)) if isinstance(s, list) else str(s) for s in strides)

    @property
    def learned(self) -> dict[str, list[float]]:
        """The strides that were learned, by layer and axis, averaged over the runs."""
        ends = [row["strides_end"] or {} for row in self.rows]
        return {
            layer: [mean(values) for values in zip(*(end[layer] for end in ends), strict=True)]
            for layer in ends[0]
        }

    @property
    def guessed(self) -> bool:
        """Whether somebody chose the strides: they are whole, and not learned."""
        whole = all(isinstance(stride, int) for stride in self["strides_start"])
        return whole and self["pooling"] not in LEARNED

    @property
    def label(self) -> str:
        """What the pooling is called in a table.

        >>> row = {"pooling": "diffstride", "edge": "stopband", "order": "before"}
        >>> Entry(({**row, "budget": "strided"},)).label
        'DiffStride, stopband, at the strided cost'
        """
        words = [NAMES[self["pooling"]]]
        words += [self["edge"]] if self["pooling"] == "diffstride" else []
        words += ["after the convolution"] if self["order"] == "after" else []
        words += [_allowed(self["budget"])] if self["budget"] else []
        return ", ".join(words)

    @property
    def published(self) -> Figure | None:
        """The published figure that corresponds."""
        if self["budget"]:
            return None
        strides: list[Any] = self["strides_start"]
        if any(isinstance(stride, list) for stride in strides):
            return None
        return find_published(self["dataset"], self["pooling"], tuple(strides), self["edge"])


def average(rows: Iterable[Row]) -> list[Entry]:
    """One entry for all rows that differ in their seed alone, in the order of a table."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([row[key] for key in CHOSEN if key != "seed"])
        groups.setdefault(key, []).append(row)
    return sorted((Entry(tuple(group)) for group in groups.values()), key=_rank)


def tell_apart(entries: Sequence[Entry]) -> list[str]:
    """What each is called, with its recipe where that is not the one that most have."""
    recipes = [entry["config"] for entry in entries]
    usual = mode(recipes) if recipes else None
    return [
        entry.label if recipe == usual else f"{entry.label} ({recipe})"
        for entry, recipe in zip(entries, recipes, strict=True)
    ]


def _allowed(budget: float | str) -> str:
    """A budget in words: as `CostBudget` has it, a large number counts multiply-adds."""
    if budget == "strided":
        return "at the strided cost"
    number = float(budget)
    return f"within {number / 1e6:g} M" if number > 100 else f"at {number:g} of its cost"


def _rank(entry: Entry) -> tuple[Any, ...]:
    return (
        entry["config"],
        str(entry["width"]),
        str(entry["epochs"]),
        entry["dataset"],
        str(entry["budget"] or ""),
        list(POOLINGS).index(entry["pooling"]),
        entry.label,
        entry.start,
    )
