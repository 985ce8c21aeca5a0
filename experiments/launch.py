"""How the runs of a grid are named, weighed and started."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gin
from gin.config import ConfigurableReference

from diffstride.training import gin_registry
from diffstride.training.checkpoints import CHECKPOINTS, LAST
from diffstride.training.command_line import configure
from diffstride.training.files import atomic_file
from diffstride.training.network_cost import measure_cost
from diffstride.training.run_summary import read_summary
from experiments.allowed_bindings import check_overrides
from experiments.file_locations import Places
from experiments.grid import Plan, Run, grid
from experiments.group_options import LEARNED
from experiments.result_rows import CHOSEN, KEYS, Row

# As measured: what a step needs besides its multiply-adds takes as long as this many an image, and
# the Fourier transforms of the published layer, which are not counted, about half of all the rest.
OVERHEAD = 55e6
SLOWER = {"reference": 1.5}
NOMINAL = (3, 32, 32)
CONFIGS = Path(__file__).parent / "configs"
COMMIT_NOTE = "commit.txt"
UNKNOWN = "unknown"

_registered_grid = gin_registry.register(grid, "table")


@dataclass(frozen=True)
class Grid:
    """The runs that a Gin configuration asks for, and how to start one."""

    gin_config: tuple[str, ...]
    gin_bindings: tuple[str, ...] = ()
    configs_folder: str | None = None

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All runs by name, in the order in which they are to be made."""
        named: dict[str, Run] = {}
        for run in self._plan.runs:
            other = named.setdefault(self.name(run), run)
            if other is not run:
                raise ValueError(
                    f"two runs have the name {self.name(run)}, of 'config' {other.config!r} and "
                    f"{run.config!r}: give one another 'config'"
                )
        return named

    @cached_property
    def places(self) -> Places:
        """Where its files lie."""
        return self._plan.places

    @cached_property
    def _plan(self) -> Plan:
        check_overrides(self.gin_bindings)
        self._configure()
        plan = _registered_grid()
        if not plan.runs:
            raise ValueError("the configuration has no table.grid.groups: see table.gin")
        return plan

    def _configure(self, run: Run | None = None, workdir: Path | None = None) -> None:
        model = self._model_name(run) if run else ""
        asked = run.bindings(model) if run else {}
        lines = [f"{name} = {value}" for name, value in asked.items()]
        # What the command line binds comes last, to overrule the bindings of the groups.
        bindings = [*lines, *(run.extra if run else ()), *self.gin_bindings]
        place = str(workdir) if workdir else None
        configure(self.gin_config, bindings, place, None, self.configs_folder, [CONFIGS])
        for name, value in [*asked.items(), *_handed_on(model, asked)]:
            if repr(bound := _bound(name)) != value:  # or the results would say what is not so
                raise ValueError(
                    f"{name} is bound to {bound!r}, but the grid asks for {value}: leave that "
                    "binding out, and have the group say what it is to be by the key of its own"
                )

    def _model_name(self, run: Run) -> str:
        """What the recipe of a run trains, or the bindings of its group say it is to."""
        if run.extra not in self._models:
            bindings = [*run.extra, *self.gin_bindings]
            configure(self.gin_config, bindings, None, None, self.configs_folder, [CONFIGS])
            _check_unscoped("train.train.model", "train.train.datasets")
            reference = _bound("train.train.model")
            self._models[run.extra] = getattr(reference, "selector", "resnet.resnet18")
        return self._models[run.extra]

    @cached_property
    def _models(self) -> dict[tuple[str, ...], str]:
        return {}

    def chosen(self, run: Run) -> Row:
        """The part of a run's row that is known before it is made."""
        self._configure(run)
        facts = asdict(run) | {
            "strides_start": list(run.strides),
            "width": _value(f"{self._model_name(run)}.width"),
            "epochs": _value("train.train.num_epochs"),
        }
        return {key: facts[key] for key in CHOSEN}

    def name(self, run: Run) -> str:
        """A name for the run and its folder, made of all that tells it from others."""
        row = self.chosen(run)
        parts = [row["dataset"], row["pooling"], row["edge"], row["order"]]
        parts += [f"budget_{row['budget']}" if row["budget"] else None]
        parts += ["".join(map(str, row["strides_start"]))]
        parts += [f"width{row['width']}" if row["width"] else None]
        held_out = _value("data.load_datasets.holdout")
        parts += [f"holdout{held_out}" if held_out else None]
        parts += [f"epochs{row['epochs']}", f"seed{row['seed']}"]
        words = "-".join(str(part) for part in parts if part is not None)
        return f"{row['config']}/{words}".replace(" ", "_")

    def cost(self, run: Run, num_classes: int = 10) -> int:
        """Multiply-adds of an image of 32 x 32 at the strides that a run starts from, unlimited."""
        self._configure(run)
        model = gin.get_configurable(self._model_name(run))
        network = model(num_output_classes=num_classes, in_channels=NOMINAL[0])
        return measure_cost(network, NOMINAL).multiply_adds

    def weight(self, run: Run) -> float:
        """Roughly how long a run takes, in multiply-adds of an image over all epochs."""
        per_image = (self.cost(run) + OVERHEAD) * SLOWER.get(run.pooling, 1.0)
        return per_image * _value("train.train.num_epochs")

    def holdout(self, run: Run) -> int:
        """How many training images a run holds out, to be tested on."""
        self._configure(run)
        return _value("data.load_datasets.holdout")

    def train(self, run: Run, workdir: Path) -> Row:
        """Make a run, or what is left of it, and return its row, but for the commit."""
        row = self.chosen(run)
        self._configure(run, workdir)
        return row_of(row, gin_registry.train())


def row_of(chosen: Row, summary: Mapping[str, Any]) -> Row:
    """The row of a run, but for the commit, from what was asked for and its summary."""
    facts = chosen | {key: summary[key] for key in KEYS if key in summary and key not in chosen}
    learned = chosen["pooling"] in LEARNED
    facts["strides_end"] = summary["strides"] if learned else None
    return {key: facts.get(key) for key in KEYS}


def note_commit(workdir: Path, now: str | None) -> str | None:
    """The commit at which a run is trained, written into its folder for a run that resumes it.

    A run that is resumed at another commit has both, joined by ``+``. A finished run keeps its own.

    Args:
        workdir: folder of the run.
        now: the commit of this process, None if it is not known.

    Returns:
        The commit, None if it is not known.
    """
    path = workdir / COMMIT_NOTE
    noted = path.read_text(encoding="utf-8").strip() if path.exists() else UNKNOWN
    if read_summary(workdir) is None:
        parts = noted.split("+") if (workdir / CHECKPOINTS / LAST).exists() else []
        if parts[-1:] != [now or UNKNOWN]:
            parts.append(now or UNKNOWN)
        noted = "+".join(parts)
        with atomic_file(path) as file:
            file.write(f"{noted}\n".encode())
    return None if noted == UNKNOWN else noted


def _handed_on(model: str, asked: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is bound on a model that would hand it on, over what is bound on its `Resnet`."""
    for name, value in asked.items():
        owner, _, argument = name.rpartition(".")
        if owner == "resnet.Resnet" and _is_bound(f"{model}.{argument}"):
            yield f"{model}.{argument}", value


def _check_unscoped(*names: str) -> None:
    """Refuse references in a scope of Gin, whose bindings the grid would not reach."""
    for name in names:
        reference = _bound(name)
        if "/" in getattr(reference, "scoped_selector", ""):
            raise ValueError(
                f"{name} is bound to {reference!r}: the grid binds what has no scope, so that "
                "nothing else may be trained; leave out the scope"
            )


def _is_bound(name: str) -> bool:
    try:
        gin.query_parameter(name)
    except ValueError:
        return False
    return True


def _value(name: str) -> Any:
    """What Gin binds an argument to, or else its default, where it can stand in a row."""
    value = _bound(name)
    if isinstance(value, ConfigurableReference):
        raise ValueError(f"{name} is bound to {value!r}: expected a number, or a %MACRO for one")
    return value


def _bound(name: str) -> Any:
    """What Gin binds an argument to, or else its default; not a macro, but what it stands for."""
    if not _is_bound(name):
        function, _, argument = name.rpartition(".")
        parameter = inspect.signature(gin.get_configurable(function)).parameters.get(argument)
        return None if parameter is None else parameter.default
    value = gin.query_parameter(name)
    while getattr(value, "selector", None) == "gin.macro":
        value = gin.query_parameter(f"{value.scoped_selector}.value")
    return value
