"""Explain errors that a network raises while it is traced: where, why, and what to do."""

import inspect
import os
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from diffstride._torch_compat import DataDependentError, DynamicShapeError
from diffstride._wording import one_line
from diffstride.graph.example_inputs import integer_types
from diffstride.graph.leaf_modules import is_among, is_leaf

if TYPE_CHECKING:
    from diffstride.graph.tracer import Tracer

PARTS = "backbone", "encoder"  # of detectors and the like, whose heads depend on data
PACKAGE = os.path.dirname(os.path.dirname(__file__))


class ReadsDataError(ValueError):
    """A number is needed that depends on the input of the network, not on its shape alone."""


def explain(error: Exception, tracer: "Tracer") -> str:
    """The message for an error raised while tracing: where, why, and what to do."""
    return _explained(error, tracer) + _taken_as_one(tracer.traced.model, tracer.inputs)


def _explained(error: Exception, tracer: "Tracer") -> str:
    failed, name = tracer.failed
    name = name if error is failed else ""
    module = tracer.traced.modules[name]
    kind, cause = type(module).__name__, f"{_where(error)}: {_described(error)}"
    reads_data = isinstance(error, DataDependentError | DynamicShapeError | ReadsDataError)
    reads_data = reads_data or str(error).startswith(".numpy() is not supported")
    if reads_data and tracer.traced.model.training:
        cause += " (if layers are dropped at random in training, call model.eval() before)"
    for part in (each for each in PARTS if hasattr(tracer.traced.model, each)):
        cause += f". Convert a part of the network: {_conversion_of(part)}"
        break
    where = f"the forward pass of {kind} cannot be traced"
    if name:
        where = f"the forward pass cannot be traced into {name!r} ({kind})"
    if isinstance(error, DataDependentError):  # outside of the calls that are recorded
        return (
            f"{where}{cause}; a number is read there from a tensor: if the module keeps it as a "
            "plain attribute, make it a buffer by self.register_buffer('name', tensor); if it "
            "depends on the data, convert the part of the network before it, as in "
            f"{_conversion_of('encoder')}"
        )
    if reads_data:
        return (
            f"{where}{cause}; what is computed there depends on the data, and would in "
            "leaf_modules: convert the part of the network before it, as in "
            f"{_conversion_of('encoder')}"
        )
    shape = "the example has the shape the model expects"
    if (integers := integer_types(tracer.inputs)) and "type" in cause:
        shape = (
            f"the example has the dtype of the weights: it is {integers}, and example.float() "
            "makes it floating-point"
        )
    if not name:
        return (
            f"{where}{cause}; check that {shape}; if it has, move that operation into a module of "
            "its own and name it in leaf_modules"
        )
    if is_among(tracer.leaves, name, module):
        return (
            f"{name!r} ({kind}) is in leaf_modules, but cannot run on shapes alone"
            f"{cause}; if the example is right, convert the part of the network without it, as in "
            f"{_conversion_of('encoder')}"
        )
    if is_leaf(module, name, tracer.leaves):
        return f"{name!r} ({kind}) cannot run on its input{cause}; check that {shape}"
    return (
        f"{where}{cause}; if the example is right, exclude the module with "
        f"leaf_modules=[{name!r}]: its own strides then stay as they are"
    )


def _conversion_of(part: str) -> str:
    return f"model.{part} = convert(model.{part}, x)"


def _taken_as_one(model: nn.Module, inputs: tuple) -> str:
    """What to say more where a dictionary or a list was taken as one input."""
    (given, *others) = inputs
    if others or not isinstance(given, Mapping | list):
        return ""
    if isinstance(given, list):
        return (
            f". The example is a list of {len(given)}, as a batch of a DataLoader, and was passed "
            "as one input: pass the images alone, as in example[0], or a tuple of several inputs"
        )
    names = ", ".join(map(repr, given))
    return (
        f". The example is a dictionary of {names}, which are no arguments of "
        f"{type(model).__name__}.forward{inspect.signature(model.forward)}, so that it was passed "
        "as one input: use their names, or pass a tensor"
    )


def _where(error: Exception) -> str:
    """The line of the network that raised an error."""
    here = tuple(os.path.join(folder, "") for folder in (PACKAGE, os.path.dirname(torch.__file__)))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.line and not frame.filename.startswith(here):
            file = os.path.basename(frame.filename)
            return f" at {frame.line!r} ({file}, line {frame.lineno})"
    return ""


def _described(error: Exception) -> str:
    text = one_line(error, most=300)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
