"""Configuring the runs of a grid with Gin: their names, costs and trainings."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gin
import torch

import experiments.learned_resizing  # noqa: F401  registers them with Gin
from diffstride._files import atomic_file
from diffstride.training import checkpoints, gin_registry, run_summary
from diffstride.training.command_line import configure
from diffstride.training.gin_compat import ConfigurableReference
from diffstride.training.network import model_arguments
from diffstride.training.network_cost import measure_cost
from diffstride.training.sound import find_sound_function
from experiments.gin_bindings import (
    bound_value,
    check_overrides,
    check_unscoped,
    is_bound,
    plain_value,
)
from experiments.grid import Grid, Paths, Run, grid
from experiments.groups import POOLINGS
from experiments.results import CHOSEN, KEYS, Row, check_row

# Measured: the rest of a step takes as long as this many MACs an image. The Fourier transforms of
# the published layer, which are not counted as MACs, add about half.
OVERHEAD = 55e6
SLOWDOWN = {"reference": 1.5}
IMAGE_SHAPES = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28)}
USUAL_SHAPE = (3, 32, 32)  # of images of other data sets, whose sizes only their files know
CONFIGS = Path(__file__).parent / "configs"
COMMIT_NOTE = "commit.txt"
UNKNOWN = "unknown"

registered_grid = gin_registry.register(grid, "table")


@dataclass(frozen=True)
class GridRunner:
    """The grid of a Gin configuration, and how to train one of its runs."""

    gin_config: tuple[str, ...]
    gin_bindings: tuple[str, ...] = ()
    configs_folder: str | None = None

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All runs by name, in the order in which they are trained."""
        named: dict[str, Run] = {}
        for run in self._grid.runs:
            other = named.setdefault(self.name(run), run)
            if other is not run:
                raise ValueError(
                    f"two runs have the name {self.name(run)}, with the 'config' "
                    f"{other.config!r} and {run.config!r}: change one of these"
                )
        return named

    @property
    def paths(self) -> Paths:
        """The paths of the grid's files."""
        return self._grid.paths

    @cached_property
    def _grid(self) -> Grid:
        check_overrides(self.gin_bindings)
        self._load([])
        found = registered_grid()
        if not found.runs:
            raise ValueError("the configuration has no table.grid.groups: see table.gin")
        return found

    def _load(self, bindings: list[str], workdir: Path | None = None) -> None:
        # The bindings of the command line come last and overrule those of the groups.
        configure(
            self.gin_config,
            [*bindings, *self.gin_bindings],
            str(workdir) if workdir else None,
            configs_folder=self.configs_folder,
            more_folders=[CONFIGS],
        )

    def _configure(self, run: Run, workdir: Path | None = None) -> None:
        model = self._model_name(run)
        asked = run.bindings(model)
        self._load([*(f"{name} = {value}" for name, value in asked.items()), *run.extra], workdir)
        for name, value in [*asked.items(), *_passed_on(model, asked)]:
            if repr(bound := bound_value(name)) != value:  # the row would state the wrong value
                raise ValueError(
                    f"{name} is bound to {bound!r}, but the grid asks for {value}: remove that "
                    "binding, and set the option of the group instead"
                )

    def _model_name(self, run: Run) -> str:
        """The Gin name of the network that the recipe of a run trains."""
        if run.extra not in self._models:
            self._load([*run.extra])
            check_unscoped("train.train.model", "train.train.datasets")
            reference = bound_value("train.train.model")
            self._models[run.extra] = getattr(reference, "selector", "resnet.resnet18")
        return self._models[run.extra]

    @cached_property
    def _models(self) -> dict[tuple[str, ...], str]:
        return {}

    def chosen(self, run: Run) -> Row:
        """The values of a run's row that are known before it is trained."""
        self._configure(run)
        facts = asdict(run) | {
            "strides_start": list(run.strides),
            "width": plain_value(f"{self._model_name(run)}.width"),
            "epochs": plain_value("train.train.num_epochs"),
        }
        return {key: facts[key] for key in CHOSEN}

    def name(self, run: Run) -> str:
        """The name of a run and of its folder, made of all options that distinguish runs."""
        row = self.chosen(run)
        parts = [row["dataset"], row["pooling"], row["edge"], row["order"]]
        parts += [f"budget_{row['budget']}" if row["budget"] else None]
        parts += ["".join(map(str, row["strides_start"]))]
        parts += [f"width{row['width']}" if row["width"] else None]
        held_out = plain_value("data.load_datasets.holdout")
        parts += [f"holdout{held_out}" if held_out else None]
        parts += [f"fold{row['fold']}" if row["fold"] is not None else None]
        parts += [f"epochs{row['epochs']}", f"seed{row['seed']}"]
        words = "-".join(str(part) for part in parts if part is not None)
        return f"{row['config']}/{words}".replace(" ", "_")

    def cost(self, run: Run, num_classes: int = 10) -> int:
        """MACs of one image or sound at the initial strides, before a budget is applied."""
        self._configure(run)
        model = gin.get_configurable(self._model_name(run))
        shape = _example_shape(run.dataset)
        return measure_cost(model(**model_arguments(num_classes, shape)), shape).multiply_adds

    def weight(self, run: Run) -> float:
        """An estimate of a run's duration, in MACs of one image times epochs."""
        per_image = (self.cost(run) + OVERHEAD) * SLOWDOWN.get(run.pooling, 1.0)
        return per_image * plain_value("train.train.num_epochs")

    def holdout(self, run: Run) -> int:
        """The number of training images that a run holds out and is tested on."""
        self._configure(run)
        return plain_value("data.load_datasets.holdout")

    def train(self, run: Run, workdir: Path, commit: str | None) -> Row:
        """Train or resume a run in its run folder, at a commit, and return its row."""
        row = self.chosen(run)
        self._configure(run, workdir)
        noted = note_commit(workdir, commit)
        return check_row(make_row(row, gin_registry.train()) | {"commit": noted})


def _example_shape(dataset: str) -> tuple[int, ...]:
    """The shape of an image or sound of a data set, without reading it."""
    sound_fn, size = map(
        bound_value, ("data.load_datasets.sound_fn", "data.load_datasets.image_size")
    )
    if sound_fn is not None:
        is_reference = isinstance(sound_fn, ConfigurableReference)
        function = gin.get_configurable(sound_fn.selector) if is_reference else sound_fn
        return tuple(find_sound_function(function)(torch.zeros(1), 8000).shape)
    channels, *usual = IMAGE_SHAPES.get(dataset, USUAL_SHAPE)
    return (channels, *([size] * 2 if size else usual))


def make_row(chosen: Row, summary: Mapping[str, Any]) -> Row:
    """The row of a run without its commit, from what the grid asked for and the run's summary."""
    facts = chosen | {key: summary[key] for key in KEYS if key in summary and key not in chosen}
    learned = POOLINGS[chosen["pooling"]].learned
    facts["strides_end"] = summary["strides"] if learned else None
    return {key: facts.get(key) for key in KEYS}


def _passed_on(model: str, asked: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Bindings of a function such as `resnet18` that would overrule those of its `Resnet`."""
    for name, value in asked.items():
        owner, _, argument = name.rpartition(".")
        if owner == "resnet.Resnet" and is_bound(f"{model}.{argument}"):
            yield f"{model}.{argument}", value


def note_commit(workdir: Path, commit: str | None) -> str | None:
    """Note in a run folder at which commit the run is trained, for when it is resumed.

    A run that was begun at one commit and resumed at another has both, joined by ``+``. The note
    of a finished run stays. Returns the note, None if the commit is unknown.
    """
    path = workdir / COMMIT_NOTE
    noted = path.read_text(encoding="utf-8").strip() if path.exists() else UNKNOWN
    if run_summary.read_summary(workdir) is None:
        last = workdir / checkpoints.CHECKPOINTS / checkpoints.LAST
        parts = noted.split("+") if last.exists() else []
        if parts[-1:] != [commit or UNKNOWN]:
            parts.append(commit or UNKNOWN)
        noted = "+".join(parts)
        with atomic_file(path) as file:
            file.write(f"{noted}\n".encode())
    return None if noted == UNKNOWN else noted
