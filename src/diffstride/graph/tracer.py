"""Trace a network with `torch.fx`, and record the value and cost of every call.

Plain symbolic tracing stops at the first ``if x.shape[-1] % 2``. Here each call also runs while it
is recorded, on fake tensors, which have a shape and no data. So control flow may depend on shapes.
The graph is for analysis only, and runs on fake tensors alone.
"""

import os
import re
import threading
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from diffstride._torch_compat import FakeTensorMode, tree_map_only
from diffstride.graph.example_inputs import (
    ExampleError,
    as_inputs,
    batch_size,
    check_batch_axis,
    check_traceable,
    empty_like_weights,
    has_tensor,
    name_inputs,
)
from diffstride.graph.fake_run import restoring, run_node, shapes_only
from diffstride.graph.leaf_modules import Leaf, as_leaves, is_among, recorded_leaves
from diffstride.graph.value_proxies import ValueProxy
from diffstride.pooling.base import SizedPooling

PACKAGE = os.path.dirname(os.path.dirname(__file__))


@dataclass
class Trace:
    """A traced network.

    Attributes:
        batch: number of samples in the example.
        graph: the calls, in order of execution.
        values: what each node returned: a fake tensor, a number or a container of them.
        multiply_adds: cost of each node for the whole batch.
        owners: name of the module whose ``forward`` made the call.
        constants: nodes whose value ``forward`` made a constant, by ``int()`` or an ``if`` for
            instance, with the name of the module that did.
    """

    model: nn.Module
    fake_mode: FakeTensorMode
    batch: int
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    multiply_adds: dict[fx.Node, int] = field(default_factory=dict)
    owners: dict[fx.Node, str] = field(default_factory=dict)
    constants: dict[fx.Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None if it calls a function."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def module_name(self, node: fx.Node) -> str:
        """The name of the module that a node calls, or of the one that calls the function."""
        return str(node.target) if node.op == "call_module" else self.owners[node]

    def label(self, node: fx.Node) -> str:
        """The node in an error message: name and class of the module, or function and owner."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.module(node)).__name__})"
        name = getattr(node.target, "__name__", str(node.target))
        return f"{name} in {self.owners[node] or 'the model itself'}"


def trace(model: nn.Module, example: Any, leaf_modules: Iterable[Leaf] = ()) -> Trace:
    """Record the calls that ``model(example)`` makes, on shapes alone.

    The model runs in its current mode (training or evaluation), without its hooks, and is restored
    afterwards. These modules are recorded as one node: those of `torch.nn`, pooling layers, modules
    with a ``stride`` and no children, and ``leaf_modules``. All others are traced into.

    Args:
        model: any network.
        example: its input, or a tuple of its inputs. Only shapes matter: floating-point tensors are
            taken in the dtype of the weights, all tensors on their device.
        leaf_modules: names or classes of modules to record as one node; if empty, those that
            `convert` was given.

    Raises:
        ValueError: if the example does not fit, or the forward pass cannot be traced; names the
            module that caused it.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
    >>> traced = trace(net, torch.zeros(1, 3, 8, 8))
    >>> [(node.name, tuple(value.shape)) for node, value in traced.values.items()][:2]
    [('input_1', (1, 3, 8, 8)), ('_0', (1, 8, 4, 4))]
    """
    inputs = as_inputs(example)
    check_traceable(model, inputs)
    traced = Trace(model, FakeTensorMode(allow_non_fake_inputs=True), batch_size(inputs))
    with restoring(model), shapes_only(traced.fake_mode) as counter:
        fakes = tree_map_only(Tensor, partial(empty_like_weights, model=model), inputs)
        tracer = Tracer(traced, fakes, leaf_modules, counter)
        try:
            traced.graph = tracer.trace(model)
        except ExampleError:
            raise
        except Exception as error:
            raise ValueError(tracer.describe_error(error)) from error
    return traced


class Tracer(fx.Tracer):
    """Records the value, cost and owner of each node; control flow may depend on sizes."""

    def __init__(
        self, traced: Trace, inputs: tuple, leaf_modules: Iterable[Leaf], counter: FlopCounterMode
    ) -> None:
        super().__init__()
        model = traced.model
        self.leaves = as_leaves(leaf_modules) or recorded_leaves(model)
        names = {leaf for leaf in self.leaves if isinstance(leaf, str)}
        if unknown := names - traced.modules.keys():
            raise ValueError(f"leaf_modules: the model has no module named {unknown.pop()!r}")
        self.traced, self.inputs, self.counter = traced, inputs, counter
        self.values = traced.values
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.stack = [""]
        self.evaluating = False
        self.thread = threading.get_ident()

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        # Unlike in fx, only tensors become proxies: other arguments and defaults stay values.
        kind = type(self.root).__name__
        self.arguments = name_inputs(root_fn, kind, self.inputs)
        proxies = [
            self.create_proxy("placeholder", name, (), {}) if has_tensor(value) else value
            for name, value in self.arguments.items()
        ]
        return root_fn, [self.root, *proxies]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            is_among(self.leaves, module_qualified_name, m)
            or isinstance(m, SizedPooling)
            or (hasattr(m, "stride") and not any(m.children()))
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        if threading.get_ident() != self.thread:  # torch.fx patches the calls of all threads
            return forward(*args, **kwargs)
        if self.evaluating:
            return m.forward(*args, **kwargs)
        name = self.path_of_module(m)
        self.stack.append(name)
        if self.is_leaf_module(m, name):
            result = self.create_proxy("call_module", name, args, kwargs)
        else:
            # Not through __call__: hooks must not receive proxies.
            result = m.forward(*args, **kwargs)
        self.stack.pop()  # not after an error: `describe_error` needs it
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluating or id(attr_val) not in self.names:
            return attr_val
        if threading.get_ident() != self.thread:
            return attr_val
        name = self.names[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        # Unlike in fx, no search through all parameters, and no constants stored on the model.
        name = self.names.setdefault(id(a), f"constant{len(self.names)}")
        self.tensors[name] = a
        return self.create_node("get_attr", name, (), {})

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        self.traced.owners[node] = self.stack[-1]
        before = self.counter.get_total_flops()
        self.evaluating = True
        self.values[node] = self._evaluate(node)
        self.evaluating = False
        self.traced.multiply_adds[node] = (self.counter.get_total_flops() - before) // 2
        return node

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.arguments[str(node.target)]
        if node.op == "get_attr":
            return self.tensors[str(node.target)]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        if node.op == "output":
            return args[0]
        module = self.traced.module(node)
        check_batch_axis(module, node, args)
        return run_node(module, node, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ValueProxy(node, self)

    def record_constant(self, node: fx.Node) -> None:
        """Record that ``forward`` made the value of a node a constant."""
        self.traced.constants[node] = self.stack[-1]

    def to_bool(self, obj: Any) -> bool:
        self.record_constant(obj.node)
        return bool(self.values[obj.node])

    def iter(self, obj: Any) -> Iterator:
        return iter([obj[i] for i in range(len(obj))])

    def keys(self, obj: Any) -> Any:
        return self.values[obj.node].keys()

    def describe_error(self, error: Exception) -> str:
        """The message for an error raised while tracing: where, why, and what to do."""
        name = self.stack[-1]
        module = self.traced.modules[name]
        kind, cause = type(module).__name__, f"{_where(error)}: {_one_line(error)}"
        shape = "the example has the shape the model expects"
        if not name:
            return (
                f"the forward pass of {kind} cannot be traced{cause}; check that {shape}; if it "
                "has, move that operation into a module of its own and name it in leaf_modules"
            )
        if is_among(self.leaves, name, module):
            return (
                f"{name!r} ({kind}) is in leaf_modules, but cannot run on shapes alone"
                f"{cause}; if the example is right, the module depends on the data: pass the "
                "network without it"
            )
        if self.is_leaf_module(module, name):
            return f"{name!r} ({kind}) cannot run on its input{cause}; check that {shape}"
        return (
            f"the forward pass cannot be traced into {name!r} ({kind}){cause}; if the example is "
            f"right, exclude the module with leaf_modules=[{name!r}]: its own strides then stay "
            "as they are"
        )


def _where(error: Exception) -> str:
    """The line of the network that raised an error."""
    here = tuple(os.path.join(folder, "") for folder in (PACKAGE, os.path.dirname(torch.__file__)))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.line and not frame.filename.startswith(here):
            file = os.path.basename(frame.filename)
            return f" at {frame.line!r} ({file}, line {frame.lineno})"
    return ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    if factory := re.match(
        r"(zeros|ones|empty|randn?)\(\) (takes 1 pos|received an invalid)", text
    ):
        text += f" (pass the sizes as one tuple, torch.{factory[1]}((…)))"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
