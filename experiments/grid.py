"""Which runs a table is made of: groups of options, each standing for all combinations."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from experiments.file_locations import Places
from experiments.group_options import COMBINED, POOLINGS, Group, read_group

USUAL = Places()


@dataclass(frozen=True)
class Run:
    """One training of a table; what does not apply to its pooling is None."""

    config: str
    dataset: str
    pooling: str
    edge: str | None
    budget: float | str | None
    order: str | None
    strides: tuple[Any, ...]
    seed: int
    extra: tuple[str, ...] = ()

    def bindings(self, model: str = "resnet.resnet18") -> dict[str, str]:
        """What Gin has to bind, and to what, for a recipe that trains ``model`` to be this run."""
        owner = "resnet.Resnet" if model.startswith("resnet.") else model
        bound = {
            "data.load_datasets.name": self.dataset,
            f"{model}.strides": list(self.strides),
            "train.train.budget": self.budget,
            "train.train.devices": 1,  # several would share the steps: another run
            "train.train.seed": self.seed,
        }
        if self.edge is not None and self.pooling == "diffstride":
            bound["pooling.DiffStride.edge"] = self.edge
        if self.order is not None:
            bound[f"{owner}.order"] = self.order
        texts = {name: repr(value) for name, value in bound.items()}
        return texts | {f"{owner}.pooling_cls": POOLINGS[self.pooling]}


class Plan(NamedTuple):
    """The runs of a grid, and where its files lie."""

    runs: list[Run]
    places: Places


def grid(
    groups: Sequence[Group] = (),
    config: str = "table",
    edge: str = "stopband",
    order: str = "before",
    seeds: Sequence[int] = (0, 1, 2),
    results: str | Path = USUAL.results,
    pages: Sequence[str | Path] = USUAL.pages,
    pictures: str | Path = USUAL.pictures,
) -> Plan:
    """The runs of all groups, every first seed before every second one, and where their files lie.

    A group is a dictionary. ``dataset``, ``pooling`` (a key of `POOLINGS`), ``edge``, ``budget``
    and ``order`` hold one value or a list, ``strides`` a list of strides or a list of such lists,
    ``seeds`` a list: it stands for all combinations. What a pooling does not have is left out:
    only ``diffstride`` has an edge and a budget, and ``strided`` has no order. ``bindings`` are
    Gin bindings for all else; ``config`` then gives these runs a name of their own.

    Args:
        groups: the groups; ``dataset``, ``pooling`` and ``strides`` are needed.
        config: name of the recipe, for groups without one.
        edge: for groups without one, as are ``order`` and ``seeds``.
        results: folder of the files of rows, named ``holdout`` if the runs hold images out.
        pages: files whose tables a report makes anew.
        pictures: folder of the pictures, which the pages link to.

    Raises:
        ValueError: a group has an unknown key or value, or lacks one, or two runs are the same.

    >>> group = {"dataset": "cifar10", "pooling": ["strided", "max"], "strides": [1, 1, 2, 2, 2]}
    >>> [(run.pooling, run.order, run.seed) for run in grid([group], seeds=[0, 1]).runs]
    [('strided', None, 0), ('max', 'before', 0), ('strided', None, 1), ('max', 'before', 1)]
    """
    defaults = {"config": config, "edge": edge, "order": order, "seeds": seeds}
    found = []
    for number, group in enumerate(groups, start=1):
        try:
            found += _expand(read_group(group, defaults))
        except (ValueError, TypeError) as error:
            raise ValueError(f"group {number} of the grid: {error}") from error
    runs = [run for _, run in sorted(found, key=lambda item: item[0])]
    _check_different(runs)
    return Plan(runs, Places(Path(results), tuple(map(Path, pages)), Path(pictures)))


def _expand(group: Group) -> Iterator[tuple[int, Run]]:
    """The runs of a group, each with the position of its seed among the seeds."""
    choices = {name: group[name] for name in (*COMBINED, "strides")}
    same = {"config": group["config"], "extra": tuple(group["bindings"])}
    seen = set()
    for wave, seed in enumerate(group["seeds"]):
        for values in product(*choices.values()):
            run = _applicable(Run(seed=seed, **same, **dict(zip(choices, values, strict=True))))
            if run not in seen:  # two edges make one run of a pooling that has none
                seen.add(run)
                yield wave, run


def _applicable(run: Run) -> Run:
    """The run without what its pooling does not have."""
    return replace(
        run,
        edge={"diffstride": run.edge, "reference": "passband"}.get(run.pooling),
        budget=run.budget if run.pooling == "diffstride" else None,
        order=None if run.pooling == "strided" else run.order,
    )


def _check_different(runs: Sequence[Run]) -> None:
    counts = Counter(replace(run, extra=()) for run in runs)
    for run, count in counts.items():
        if count > 1:
            raise ValueError(
                f"the grid has {count} runs that no column of the results tells apart, {run}: give "
                "their groups different names with 'config'"
            )
