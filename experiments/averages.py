"""Averages over seeds and folds: runs that differ only in these are one entry of a table."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, mode, stdev
from typing import Any

from diffstride._wording import counted
from experiments.groups import POOLINGS, format_stride
from experiments.published import Figure, find_published
from experiments.results import CHOSEN, Row, identity

DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fsdd": "spoken digits"}


@dataclass(frozen=True)
class Entry:
    """The rows of at least one run, which differ only in their seed and fold."""

    rows: tuple[Row, ...]

    def __getitem__(self, key: str) -> Any:
        """The value that the grid asked for, or the mean of a measured number."""
        values = [row[key] for row in self.rows]
        return values[0] if key in CHOSEN else mean(values)

    @property
    def count(self) -> int:
        """Number of runs."""
        return len(self.rows)

    @property
    def accuracy(self) -> float:
        """Mean test accuracy in percent."""
        return self["test_accuracy"]

    @property
    def spread(self) -> float | None:
        """Standard deviation of the test accuracy over the runs, None for a single run."""
        return stdev(row["test_accuracy"] for row in self.rows) if self.count > 1 else None

    @property
    def dataset(self) -> str:
        """Name of the data set, as tables show it."""
        name = str(self["dataset"])
        folds = "" if self["fold"] is None else ", folds"
        return DATASETS.get(name, name) + folds

    @property
    def start(self) -> str:
        """Initial strides; those of two axes as height x width."""
        return ",".join(map(format_stride, self["strides_start"]))

    def cost_range(self, when: str) -> tuple[float, float]:
        """Smallest and largest MACs of the runs at their ``"start"`` or ``"end"``."""
        costs = [row[f"multiply_adds_{when}"] for row in self.rows]
        return min(costs), max(costs)

    @property
    def learned(self) -> dict[str, list[float]]:
        """Mean learned strides of the runs, for each layer and axis."""
        return self._over_runs(mean)

    @property
    def learned_spread(self) -> dict[str, list[float]]:
        """Standard deviations of the learned strides, 0 for a single run."""
        return self._over_runs(lambda values: stdev(values) if len(values) > 1 else 0.0)

    def _over_runs(self, statistic: Callable[[Sequence[float]], float]) -> dict[str, list[float]]:
        ends = [row["strides_end"] or {} for row in self.rows]
        shapes = [{layer: len(strides) for layer, strides in end.items()} for end in ends]
        if shapes != shapes[:1] * len(shapes):
            raise ValueError(
                f"the runs of {self['config']!r}, {self.label}, from {self.start} differ in their "
                "layers with learned strides: give their groups different values of 'config'"
            )
        return {
            layer: [statistic(axis) for axis in zip(*(end[layer] for end in ends), strict=True)]
            for layer in ends[0]
        }

    @property
    def guessed(self) -> bool:
        """Whether the strides are integers and not learned."""
        texts = [text for s in self["strides_start"] for text in format_stride(s).split("x")]
        return all(map(str.isdigit, texts)) and not POOLINGS[self["pooling"]].learned

    @property
    def label(self) -> str:
        """The pooling and its options in words.

        >>> row = {"pooling": "diffstride", "edge": "stopband", "order": "before"}
        >>> Entry(({**row, "budget": "strided"},)).label
        'DiffStride, stopband, at the strided cost'
        """
        words = [POOLINGS[self["pooling"]].label]
        words += [self["edge"]] if self["pooling"] == "diffstride" else []
        words += ["after the convolution"] if self["order"] == "after" else []
        words += [_format_budget(self["budget"])] if self["budget"] else []
        return ", ".join(words)

    @property
    def published(self) -> Figure | None:
        """The published figure for the same options, if any."""
        strides: list[Any] = self["strides_start"]
        if self["budget"] or any(isinstance(stride, list) for stride in strides):
            return None
        return find_published(self["dataset"], self["pooling"], tuple(strides), self["edge"])

    @property
    def rank(self) -> tuple[Any, ...]:
        """Key that sorts the entries of a table."""
        recipe = (self["config"], str(self["width"]), str(self["epochs"]))
        pooling = list(POOLINGS).index(self["pooling"])
        return *recipe, self["dataset"], str(self["budget"] or ""), pooling, self.label, self.start


def _format_budget(budget: float | str) -> str:
    """A budget in words. Numbers above 100 are MACs, as in `CostBudget`."""
    if budget == "strided":
        return "at the strided cost"
    number = float(budget)
    return f"within {number / 1e6:g} M" if number > 100 else f"at {number:g} of its cost"


def is_guess(entry: Entry) -> bool:
    """Whether the strides were guessed: those of fixed spectral pooling."""
    return entry["pooling"] == "spectral"


def average_seeds(rows: Iterable[Row]) -> list[Entry]:
    """One entry for all rows that differ only in seed and fold, in the order of a table."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        kind = identity(row, [key for key in CHOSEN if key not in ("seed", "fold")])
        kind += str(row["fold"] is None)  # the split of the data set is another protocol
        groups.setdefault(kind, []).append(row)
    return sorted((Entry(tuple(group)) for group in groups.values()), key=lambda each: each.rank)


def unique_labels(entries: Sequence[Entry]) -> list[str]:
    """The label of each entry, with the recipe where it differs from the most frequent one.

    Width and epochs are added where entries of one recipe differ in them.

    Raises:
        ValueError: two entries with the same data set and initial strides have the same label.
    """
    usual = mode(entry["config"] for entry in entries) if entries else None
    labels = []
    for entry in entries:
        notes = [entry["config"]] if entry["config"] != usual else []
        same = [each for each in entries if each["config"] == entry["config"]]
        texts = {"width": f"width {entry['width']}", "epochs": counted(entry["epochs"], "epoch")}
        notes += [text for key, text in texts.items() if len({each[key] for each in same}) > 1]
        labels.append(f"{entry.label} ({', '.join(notes)})" if notes else entry.label)
    names = [(e.dataset, e.start, label) for e, label in zip(entries, labels, strict=True)]
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(
                f"{count} different entries have the label {', '.join(name)}: give the groups of "
                "the grid different values of 'config', in the files of results too"
            )
    return labels
