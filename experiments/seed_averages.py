"""Runs that differ in their seeds alone, as one entry of a table."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, mode, stdev
from typing import Any

from experiments.group_options import LEARNED, POOLINGS, stride_text
from experiments.published_results import Figure, find_published
from experiments.result_rows import CHOSEN, Row, identity

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
        return ",".join(map(stride_text, self["strides_start"]))

    def cost_range(self, when: str) -> tuple[float, float]:
        """The least and the most multiply-adds that a run has at its ``start`` or ``end``."""
        costs = [row[f"multiply_adds_{when}"] for row in self.rows]
        return min(costs), max(costs)

    @property
    def learned(self) -> dict[str, list[float]]:
        """The strides that were learned, by layer and axis, averaged over the runs."""
        return self._over_runs(mean)

    @property
    def learned_spread(self) -> dict[str, list[float]]:
        """Their standard deviations over the runs, 0 of a single one."""
        return self._over_runs(lambda values: stdev(values) if len(values) > 1 else 0.0)

    def _over_runs(self, what: Callable[[Sequence[float]], float]) -> dict[str, list[float]]:
        ends = [row["strides_end"] or {} for row in self.rows]
        return {
            layer: [what(values) for values in zip(*(end[layer] for end in ends), strict=True)]
            for layer in ends[0]
        }

    @property
    def guessed(self) -> bool:
        """Whether somebody chose the strides: they are whole, and not learned."""
        texts = [text for s in self["strides_start"] for text in stride_text(s).split("x")]
        return all(map(str.isdigit, texts)) and self["pooling"] not in LEARNED

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
        kind = identity(row, [key for key in CHOSEN if key != "seed"])
        groups.setdefault(kind, []).append(row)
    return sorted((Entry(tuple(group)) for group in groups.values()), key=_rank)


def tell_apart(entries: Sequence[Entry]) -> list[str]:
    """What each is called, with its recipe where that is not the one that most have.

    Width and epochs are named in a recipe that has several.

    Raises:
        ValueError: two of the same data set and start would have one name.
    """
    usual = mode(entry["config"] for entry in entries) if entries else None
    labels = []
    for entry in entries:
        notes = [entry["config"]] if entry["config"] != usual else []
        same = [each for each in entries if each["config"] == entry["config"]]
        for key, text in {"width": "width {}", "epochs": "{} epochs"}.items():
            if len({each[key] for each in same}) > 1:
                notes.append(text.format(entry[key]))
        labels.append(f"{entry.label} ({', '.join(notes)})" if notes else entry.label)
    names = [(e.dataset, e.start, label) for e, label in zip(entries, labels, strict=True)]
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(
                f"{count} kinds of runs would be called {', '.join(name)}: give the groups of the "
                "grid different names with 'config', in the files of results too"
            )
    return labels


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
