"""The runs of a grid: groups of options, each for all combinations of its values."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from diffstride.training.files import expand_home
from experiments.groups import COMBINED, POOLINGS, Group, complete_group


@dataclass(frozen=True)
class Run:
    """One training of a grid. Options that its pooling does not have are None."""

    config: str
    dataset: str
    pooling: str
    edge: str | None
    budget: float | str | None
    order: str | None
    strides: tuple[Any, ...]
    seed: int
    extra: tuple[str, ...] = ()
    fold: int | None = None

    def bindings(self, model: str = "resnet.resnet18") -> dict[str, str]:
        """The Gin bindings of this run, for a recipe that trains ``model``."""
        owner = "resnet.Resnet" if model.startswith("resnet.") else model
        bound = {
            "data.load_datasets.name": self.dataset,
            "data.load_datasets.fold": self.fold,
            f"{model}.strides": list(self.strides),
            "train.train.budget": self.budget,
            "train.train.devices": 1,  # several devices would share the steps: another training
            "train.train.seed": self.seed,
        }
        if self.edge is not None and self.pooling == "diffstride":
            bound["pooling.DiffStride.edge"] = self.edge
        if self.order is not None:
            bound[f"{owner}.order"] = self.order
        texts = {name: repr(value) for name, value in bound.items()}
        return texts | {f"{owner}.pooling_cls": POOLINGS[self.pooling].binding}


class Paths(NamedTuple):
    """The folder of rows, the pages with tables, and the folder of pictures."""

    results: Path = Path("results")
    pages: tuple[Path, ...] = (Path("docs/results.md"),)
    pictures: Path = Path("docs/images")


class Grid(NamedTuple):
    """The runs of a grid, and the paths of its files."""

    runs: list[Run]
    paths: Paths


DEFAULT_PATHS = Paths()


def grid(
    groups: Sequence[Group] = (),
    config: str = "table",
    edge: str = "stopband",
    order: str = "before",
    seeds: Sequence[int] = (0, 1, 2),
    results: str | Path = DEFAULT_PATHS.results,
    pages: Sequence[str | Path] = DEFAULT_PATHS.pages,
    pictures: str | Path = DEFAULT_PATHS.pictures,
) -> Grid:
    """The runs of all groups, ordered by seed: all runs with their first seed come first.

    A group is a dictionary and stands for all combinations of its values. ``dataset``, ``pooling``
    (a key of `POOLINGS`), ``edge``, ``budget``, ``order`` and ``fold`` are one value or a list,
    ``strides`` is a list of strides or a list of such lists, ``seeds`` is a list. Options that a
    pooling does not have are ignored: only ``diffstride`` has an edge, only it and those of
    `experiments.learned_resizing` have a budget, and ``strided`` has no order. ``bindings`` are
    Gin bindings of anything else. Such a group needs a ``config`` of its own, which names its
    recipe in the results.

    Args:
        groups: the groups; each needs ``dataset``, ``pooling`` and ``strides``.
        config: name of the recipe, for groups without ``config``.
        edge: for groups without ``edge``; ``order`` and ``seeds`` likewise.
        results: folder of the rows. It is named ``holdout`` if the runs hold out images.
        pages: pages whose tables a report replaces.
        pictures: folder of the pictures that the pages link to.

    Raises:
        ValueError: a group has an unknown key, an invalid value or lacks a key, or two runs are
            the same.

    >>> group = {"dataset": "cifar10", "pooling": ["strided", "max"], "strides": [1, 1, 2, 2, 2]}
    >>> [(run.pooling, run.order, run.seed) for run in grid([group], seeds=[0, 1]).runs]
    [('strided', None, 0), ('max', 'before', 0), ('strided', None, 1), ('max', 'before', 1)]
    """
    defaults = {"config": config, "edge": edge, "order": order, "seeds": seeds}
    found = []
    for number, group in enumerate(groups, start=1):
        try:
            found += _expand(complete_group(group, defaults))
        except (ValueError, TypeError) as error:
            raise ValueError(f"group {number} of the grid: {error}") from error
    runs = [run for _, run in sorted(found, key=lambda item: item[0])]
    _check_different(runs)
    return Grid(
        runs, Paths(expand_home(results), tuple(map(expand_home, pages)), expand_home(pictures))
    )


def _expand(group: Group) -> Iterator[tuple[int, Run]]:
    """The runs of a group, each with the index of its seed."""
    choices = {name: group[name] for name in (*COMBINED, "strides")}
    same = {"config": group["config"], "extra": tuple(group["bindings"])}
    seen = set()
    for index, seed in enumerate(group["seeds"]):
        for values in product(*choices.values()):
            run = _applicable(Run(seed=seed, **same, **dict(zip(choices, values, strict=True))))
            if run not in seen:  # two edges give the same run of a pooling without edge
                seen.add(run)
                yield index, run


def _applicable(run: Run) -> Run:
    """The run without the options that its pooling does not have."""
    return replace(
        run,
        edge={"diffstride": run.edge, "reference": "passband"}.get(run.pooling),
        budget=run.budget if POOLINGS[run.pooling].budgeted else None,
        order=None if run.pooling == "strided" else run.order,
    )


def _check_different(runs: Sequence[Run]) -> None:
    counts = Counter(replace(run, extra=()) for run in runs)
    for run, count in counts.items():
        if count > 1:
            raise ValueError(
                f"{count} runs of the grid have the same values in all columns of the results, "
                f"{run}: give their groups different values of 'config'"
            )
