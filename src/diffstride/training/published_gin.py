"""Refuses Gin files of the published system, and says how each of their lines reads here."""

import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffstride.training.gin_compat import (
    BindingStatement,
    ConfigParser,
    ImportStatement,
    ParserDelegate,
)

REMOVE = "remove it"
PAGE = "docs/coming_from_tensorflow.md"
MODULES = ("tensorflow", "diffstride.", "__gin__")
"""Imports of the published files. Alone, only those of `EXAMPLES` are taken for published."""
EXAMPLES = "diffstride.examples."
OWNERS = ("", "train", "data", "resnet", "layers", "pooling")
"""Modules of the published code in names; those of other modules belong to users."""
FOREIGN = re.compile(r"@(?:[\w/]*/)?(?:tf|tfa|keras|tensorflow)\.")
"""References to functions and classes of TensorFlow, in the values of bindings."""
KERAS = ("PiecewiseConstantDecay", "CategoricalCrossentropy")
"""Names of Keras without a counterpart of that name, which Gin also takes without their modules."""
OPTIMIZERS = {"Nadam": "NAdam"}  # those with another name in torch
ARGUMENTS = {"learning_rate": "lr", "momentum": "momentum", "nesterov": "nesterov"}
WINDOW = ("pooling.DiffStride.edge = 'passband'", "pooling.DiffStride.straight_through = False")


class PublishedNamesError(ValueError):
    """A configuration has names of the published system; the message has several lines."""


class Change(NamedTuple):
    """A line of a configuration and what to write instead."""

    where: str
    line: str
    instead: tuple[str, ...]


class _Text(str):
    """A reference or macro, which is printed as it was written."""

    __slots__ = ()
    __repr__ = str.__str__


class _AsText(ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        return _Text(f"@{scoped_configurable_name}{'()' * evaluate}")

    def macro(self, macro_name: str) -> Any:
        return _Text(f"%{macro_name}")


def check_published_names(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Refuse configurations with names that only the published system has.

    Args:
        files: paths of Gin files.
        bindings: further lines.

    Raises:
        PublishedNamesError: there are such names. The message has each of these lines with the
            lines to write instead.
    """
    found = [
        each
        for name in files
        for each in changes(Path(name).read_text(encoding="utf-8"), Path(name).name)
    ]
    found += [change for each in bindings for change in changes(each, "--gin_bindings")]
    if found:
        raise PublishedNamesError(_message(found))


def changes(text: str, name: str) -> list[Change]:
    """The lines of a configuration that have to change, in order; none if it cannot be parsed."""
    try:
        statements = list(ConfigParser(text, _AsText()))
    except (SyntaxError, ValueError, tokenize.TokenError):  # Gin explains these
        return []
    found, ours = [], True
    for each in statements:
        instead = _instead(each)
        if instead is not None:
            ours &= _may_be_ours(each)
            where = f"{name}, line {each.location.line_num}"
            found.append(Change(where, _line(each), instead))
    if ours:
        return []
    return found + ([_window(name)] if _lacks_window(statements) else [])


def _may_be_ours(statement: Any) -> bool:
    """Whether a line that has to change may also stand in a configuration of this library."""
    if isinstance(statement, ImportStatement):
        return not statement.module.startswith(EXAMPLES)
    return statement.arg_name in ("output_activation", "data_format", "num_output_classes")


def _line(statement: Any) -> str:
    if isinstance(statement, ImportStatement):
        return statement.location.line_content.strip()
    return f"{statement.selector}.{statement.arg_name} = {statement.value!r}"


def _instead(statement: Any) -> tuple[str, ...] | None:
    """The lines to write instead of a statement; None where it can stay."""
    if isinstance(statement, ImportStatement):
        return (REMOVE,) if statement.module.startswith(MODULES) else None
    if not isinstance(statement, BindingStatement):
        return None
    owner, argument, value = statement.selector, statement.arg_name, statement.value
    module, _, name = owner.rpartition(".")
    if {"tf", "tfa", "keras"} & set(module.split(".")) or (not module and name in KERAS):
        return _keras(name, argument, value)
    is_published = module.startswith("diffstride.") or module.rpartition(".")[2] in OWNERS
    known = _own(name, argument, value) if is_published else None
    return _foreign(argument) if known is None and FOREIGN.search(repr(value)) else known


def _foreign(argument: str) -> tuple[str, ...]:
    """For a value of TensorFlow, whatever the argument is called."""
    if "schedule" in argument:
        return ("train.train.schedule = @schedules.multi_step",)
    return (f"{REMOVE}: there is no such value, see {PAGE}",)


def _own(owner: str, argument: str, value: Any) -> tuple[str, ...] | None:
    """Names of the published code itself."""
    if owner == "LearnableSpectralPooling":
        return (f"pooling.DiffStride.{argument} = {value!r}",)
    known = {
        ("train", "load_data_fn"): (f"train.train.datasets = {value!r}",),
        ("train", "model_cls"): (f"train.train.model = {value!r}",),
        ("train", "optimizer_cls"): (f"train.train.optimizer = {_optimizer(value)}",),
        ("train", "scheduler_fn"): ("train.train.schedule = @schedules.multi_step",),
        ("lr_schedule", "divisions"): (
            "train.train.schedule = @schedules.multi_step",
            "schedules.multi_step.boundaries = …  # in steps, not epochs",
            "schedules.multi_step.factors = …  # of the learning rate",
        ),
        ("ResidualLayer", "pooling_cls"): (f"resnet.Resnet.pooling_cls = {_new_pooling(value)}",),
    }
    if argument in ("channels_first", "data_format") and value is not None:
        return (REMOVE,)
    if argument == "num_output_classes":
        return (f"{REMOVE}: the data set says it",)
    if argument == "output_activation" and value is not None:
        return (f"{REMOVE}: the loss applies the softmax",)
    if argument == "pooling_cls" and str(value) != _new_pooling(value):
        return (f"resnet.Resnet.pooling_cls = {_new_pooling(value)}",)
    return known.get((owner, argument))


def _keras(owner: str, argument: str, value: Any) -> tuple[str, ...]:
    """Optimisers, schedules and losses of Keras."""
    if owner == "CategoricalCrossentropy" and argument == "label_smoothing":
        unused = f"{REMOVE}: it never reached the published loss"
        return (f"{unused}; or train.train.label_smoothing = {value!r}",)
    if owner == "PiecewiseConstantDecay" and argument == "boundaries":
        schedule = "train.train.schedule = @schedules.multi_step"
        return schedule, f"schedules.multi_step.boundaries = {value!r}"
    if owner == "PiecewiseConstantDecay" and argument == "values" and (peak := _peak(value)) > 0:
        factors = [round(each / peak, 12) for each in value]
        return f"torch.optim.SGD.lr = {peak!r}", f"schedules.multi_step.factors = {factors!r}"
    if argument == "learning_rate" and isinstance(value, _Text):
        return (f"{REMOVE}: the schedule is train.train.schedule",)
    if argument in ARGUMENTS:
        return (f"torch.optim.{OPTIMIZERS.get(owner, owner)}.{ARGUMENTS[argument]} = {value!r}",)
    return (f"{REMOVE}: there is no such name, see {PAGE}",)


def _peak(values: Any) -> float:
    """The largest of several numbers; 0 for other values, such as a macro."""
    numbers = values if isinstance(values, (list, tuple)) else []
    return max(numbers, default=0) if all(isinstance(x, (int, float)) for x in numbers) else 0


def _optimizer(value: Any) -> str:
    name = str(value).rpartition(".")[2].removesuffix("()")
    return f"@torch.optim.{OPTIMIZERS.get(name, name)}"


def _new_pooling(value: Any) -> str:
    return str(value).replace("LearnableSpectralPooling", "DiffStride")


def _lacks_window(statements: Iterable[Any]) -> bool:
    """Whether a configuration uses `DiffStride` and does not choose its window."""
    bound = [each for each in statements if isinstance(each, BindingStatement)]
    uses = any(
        pooling in f"{each.selector} {each.value!r}"
        for each in bound
        for pooling in ("DiffStride", "LearnableSpectralPooling")
    )
    return uses and not any(each.arg_name == "edge" for each in bound)


def _window(name: str) -> Change:
    return Change(name, "(nothing: the published window is not the default here)", WINDOW)


def _message(found: Sequence[Change]) -> str:
    return "\n".join(_message_lines(found))


def _message_lines(found: Sequence[Change]) -> Iterator[str]:
    yield (
        f"{found[0].where.partition(',')[0]} is for google-research/diffstride. Lines to "
        f"change: {len(found)}. {PAGE} explains them. The packaged "
        "cifar10.gin and cifar100.gin are the published recipes. Change:"
    )
    for where, line, instead in found:
        yield f"  {where}: {line}"
        yield from (f"      -> {each}" for each in instead)
