"""Trace a network with `torch.fx`, and record the value and cost of every call.

Plain symbolic tracing stops at the first ``if x.shape[-1] % 2``. Here each call also runs while it
is recorded, on fake tensors, which have a shape and no data. So control flow may depend on shapes.
The graph is for analysis only, and runs on fake tensors alone.
"""

import operator
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffstride._torch_compat import (
    DataDependentError,
    FakeTensor,
    FakeTensorMode,
    OperationCounter,
    call_with_hooks,
    disable_current_modes,
    tree_leaves,
    tree_map_only,
)
from diffstride.graph.example_inputs import (
    ExampleError,
    as_inputs,
    batch_size,
    check_batch_axis,
    check_features,
    check_traceable,
    empty_like_weights,
    has_tensor,
    name_inputs,
)
from diffstride.graph.fake_run import run_node, shapes_of, shapes_only
from diffstride.graph.leaf_modules import Leaf, as_leaves, is_leaf, recorded_leaves
from diffstride.graph.restoring import restoring
from diffstride.graph.size_arguments import FACTORIES, recording_methods
from diffstride.graph.stored_sizes import another_size_stored
from diffstride.graph.trace_errors import ReadsDataError, explain
from diffstride.graph.value_proxies import TensorProxy, ValueProxy
from diffstride.pooling.base import SizedPooling

IN_PLACE = ("iadd", "isub", "imul", "itruediv", "setitem")  # operators


@dataclass(frozen=True)
class Autocast:
    """Whether operations of a kind of device are cast, and to which dtype."""

    device_type: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device_type: str) -> "Autocast":
        enabled = torch.is_autocast_enabled(device_type)
        return cls(device_type, enabled, torch.get_autocast_dtype(device_type))

    def context(self) -> torch.autocast:
        return torch.autocast(self.device_type, self.dtype, self.enabled)


@dataclass
class Trace:
    """A traced network.

    Attributes:
        batch: number of samples in the example.
        graph: the calls, in order of execution.
        values: what each node returned: a fake tensor, a number or a container of them.
        operations: multiply-adds of each counted operation of a node, for the whole batch.
        autocasts: nodes that ``forward`` runs under an autocast of its own, and that autocast.
        foreign: nodes that run an operator of another library.
        owners: name of the module whose ``forward`` made the call.
        constants: nodes whose value ``forward`` made a constant, by ``int()`` or an ``if`` for
            instance, with the name of the module that did.
    """

    model: nn.Module
    fake_mode: FakeTensorMode
    batch: int
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    operations: dict[fx.Node, list[int]] = field(default_factory=dict)
    autocasts: dict[fx.Node, "Autocast"] = field(default_factory=dict)
    foreign: set[fx.Node] = field(default_factory=set)
    owners: dict[fx.Node, str] = field(default_factory=dict)
    constants: dict[fx.Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())

    @property
    def multiply_adds(self) -> dict[fx.Node, int]:
        """The cost of each node for the whole batch."""
        return {node: sum(counts) for node, counts in self.operations.items()}

    def run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run a node on other arguments, under the autocast of the network."""
        with self.autocast(node):
            return run_node(self.module(node), node, args, kwargs)

    def autocast(self, node: fx.Node) -> Any:
        """A context with the autocast that ``forward`` runs this node under."""
        state = self.autocasts.get(node)
        return nullcontext() if state is None else state.context()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of all tensors that the network returns."""
        return shapes_of(self.values[self.graph.output_node()])

    def used(self) -> set[fx.Node]:
        """The nodes that the output of the network depends on, and those that write to tensors."""
        used: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op == "output" or node in used or _writes(node):
                used |= {node, *node.all_input_nodes}
        return used

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None if it calls a function."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def calls(self, module: nn.Module) -> list[fx.Node]:
        """The nodes that call a module, in order of execution."""
        return [node for node in self.graph.nodes if self.module(node) is module]

    def maps(self, node: fx.Node) -> tuple[Tensor, Tensor] | None:
        """The first argument and the result of a call, if they are maps of as many axes."""
        first = node.args[0] if node.args else None
        source = self.values[first] if isinstance(first, fx.Node) else None
        result = self.values[node]
        if not isinstance(source, Tensor) or not isinstance(result, Tensor):
            return None
        return (source, result) if source.dim() == result.dim() > 2 else None

    def changes_input(self, node: fx.Node) -> bool:
        """Whether a node writes to its first argument."""
        in_place = node.kwargs.get("inplace") or getattr(self.module(node), "inplace", False)
        name = getattr(node.target, "__name__", "")  # of a function
        return bool(in_place) or _writes(node) or name.endswith("_") or name in IN_PLACE

    def module_name(self, node: fx.Node) -> str:
        """The name of the module that a node calls, or of the one that calls the function."""
        return str(node.target) if node.op == "call_module" else self.owners[node]

    def is_pooling(self, node: fx.Node) -> bool:
        """Whether a node calls a pooling layer of this library."""
        return isinstance(self.module(node), SizedPooling)

    def label(self, node: fx.Node) -> str:
        """The node in an error message: name and class of the module, or function and owner."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.module(node)).__name__})"
        name = getattr(node.target, "__name__", str(node.target))
        return f"{name} in {self.owners[node] or 'the model itself'}"


def trace(model: nn.Module, example: Any, leaf_modules: Iterable[Leaf] = ()) -> Trace:
    """Record the calls that ``model(example)`` makes, on shapes alone.

    The model runs in its current mode (training or evaluation), with its forward hooks, and is
    restored afterwards. These modules are recorded as one node: pooling layers, modules with a
    ``stride`` that hold no network, modules of `torch.nn` that hold nothing else, scripted modules
    and ``leaf_modules``. All others are traced into.

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
    inputs, leaf_modules = as_inputs(model, example), as_leaves(leaf_modules)
    check_traceable(model, inputs)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with restoring(model):
        traced = _record(model, inputs, leaf_modules, fake_mode)
        if traced.constants:  # of an ``if`` that asks whether a stored tensor fits, perhaps
            with another_size_stored(model, inputs, fake_mode) as is_stored:
                if is_stored:
                    # A network that cannot renew what it stored for the first size fails here.
                    with suppress(ValueError):
                        traced = _record(model, inputs, leaf_modules, fake_mode)
    return traced


def _record(
    model: nn.Module, inputs: tuple, leaf_modules: Sequence[Leaf], fake_mode: FakeTensorMode
) -> Trace:
    traced = Trace(model, fake_mode, batch_size(inputs))
    with restoring(model), shapes_only(fake_mode) as counter, recording_methods():
        fakes = tree_map_only(Tensor, partial(empty_like_weights, model=model), inputs)
        tracer = Tracer(traced, fakes, leaf_modules, counter)
        try:
            traced.graph = tracer.trace(model)
        except ExampleError:
            raise
        except Exception as error:
            raise ValueError(explain(error, tracer)) from error
    return traced


class Tracer(fx.Tracer):
    """Records the value, cost and owner of each node; control flow may depend on sizes."""

    def __init__(
        self, traced: Trace, inputs: tuple, leaf_modules: Sequence[Leaf], counter: OperationCounter
    ) -> None:
        super().__init__(autowrap_functions=FACTORIES)
        self._autowrap_search.append(torch)  # ``torch.zeros``, besides ``from torch import zeros``
        model = traced.model
        self.leaves = leaf_modules or recorded_leaves(model)
        names = {leaf for leaf in self.leaves if isinstance(leaf, str)}
        if unknown := names - traced.modules.keys():
            raise ValueError(f"leaf_modules: the model has no module named {unknown.pop()!r}")
        self.traced, self.inputs, self.counter = traced, inputs, counter
        self.values = traced.values
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.paths = {module: name for name, module in traced.modules.items()}
        self.stack = [""]
        self.failed = Exception(), ""  # the last error of a module, and the innermost such module
        self.evaluating = False
        self.thread = threading.get_ident()
        device = next((x.device for x in tree_leaves(inputs) if isinstance(x, Tensor)), None)
        self.device_type = device.type if device else "cpu"
        self.autocast = Autocast.now(self.device_type)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        # Unlike in fx, only tensors become proxies: other arguments and defaults stay values.
        model = self.traced.model
        self.arguments = name_inputs(model.forward, type(model).__name__, self.inputs)
        proxies = [
            self.create_proxy("placeholder", name, (), {}) if has_tensor(value) else value
            for name, value in self.arguments.items()
        ]

        def forward(model: nn.Module, *args: Any) -> Any:
            return call_with_hooks(model, _forward_of(model), args, {})

        return forward, [model, *proxies]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m, module_qualified_name, self.leaves)

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        # torch.fx patches the calls of all threads.
        if self.evaluating or threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        name = self.paths.get(m)
        if name is None:
            self._check_weights(m)
            return call_with_hooks(m, m.forward, args, kwargs)
        self.stack.append(name)

        def record(*args: Any, **kwargs: Any) -> fx.Proxy:
            return self.create_proxy("call_module", name, args, kwargs)

        inner = record if self.is_leaf_module(m, name) else _forward_of(m)
        try:
            return call_with_hooks(m, inner, args, kwargs)
        except Exception as error:
            known, innermost = self.failed
            self.failed = error, innermost if known in (error, error.__cause__) else name
            raise
        finally:
            self.stack.pop()  # the network may catch the error

    def _check_weights(self, module: nn.Module) -> None:
        """Refuse weights that the network does not hold: they would not be learned."""
        if any(id(parameter) not in self.names for parameter in module.parameters()):
            raise ValueError(
                f"a {type(module).__name__} with weights is called that is no part of the network: "
                "make it an attribute of the module in __init__, or put it into an nn.ModuleList"
            )

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
        if isinstance(a, fx.Proxy):
            return a.node
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        # Unlike in fx, no search through all parameters, and no constants stored on the model.
        name = self.names.setdefault(id(a), f"constant{len(self.names)}")
        self.tensors[name] = a
        return self.create_node("get_attr", name, (), {})

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if (kind, target) == ("call_method", "__getitem__"):  # as inside a function mode
            kind, target = "call_function", operator.getitem
        node = super().create_node(kind, target, *args, **kwargs)
        self.traced.owners[node] = self.stack[-1]
        before, foreign = len(self.counter.multiply_adds), self.counter.foreign
        self.evaluating = True
        try:
            self.values[node] = self._evaluate(node)
        except Exception:
            self.graph.erase_node(node)  # the network may catch the error
            raise
        finally:
            self.evaluating = False
        self.traced.operations[node] = self.counter.multiply_adds[before:]
        if self.counter.foreign > foreign:
            self.traced.foreign.add(node)
        if (autocast := Autocast.now(self.device_type)) != self.autocast:
            self.traced.autocasts[node] = autocast
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
        if isinstance(module, nn.Linear):
            for pooling in [n for n in self.values if self.traced.is_pooling(n)][-1:]:
                label = self.traced.label(pooling)
                check_features(module, node, args, label, self.values[pooling])
        try:
            return run_node(module, node, args, kwargs)
        except DataDependentError:
            return self._run_on_data(node)

    def _run_on_data(self, node: fx.Node) -> Any:
        """The value of a node that is computed from buffers and parameters alone."""
        if node.op == "get_attr" and not isinstance(self.values[node], FakeTensor):
            return self.values[node]
        if node.op not in ("call_function", "call_method") or _is_random(node):
            raise ReadsDataError(f"a number is read from {node.name}, which depends on the input")
        with disable_current_modes():
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._data)
            return run_node(None, node, args, kwargs)

    def _data(self, node: fx.Node) -> Any:
        return self._run_on_data(node) if has_tensor(self.values[node]) else self.values[node]

    def known_value(self, node: fx.Node) -> Any:
        """The value of a node, with data where Python needs its number."""
        value = self.values[node]
        if not isinstance(value, Tensor) or value.dim():
            return value
        with disable_current_modes():
            return self._run_on_data(node).item()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        value = self.values[node]
        if value is None:
            return None  # type: ignore[return-value]  # no proxy passes for it in ``is None``
        return (TensorProxy if isinstance(value, Tensor) else ValueProxy)(node, self)

    def record_constant(self, node: fx.Node) -> None:
        """Record that ``forward`` made the value of a node a constant."""
        self.traced.constants[node] = self.stack[-1]

    def to_bool(self, obj: Any) -> bool:
        self.record_constant(obj.node)
        return bool(self.known_value(obj.node))

    def iter(self, obj: Any) -> Iterator:
        return iter([obj[i] for i in range(len(obj))])

    def keys(self, obj: Any) -> Any:
        return self.values[obj.node].keys()


def _forward_of(module: nn.Module) -> Any:
    """What a call of a module runs; of a data-parallel wrapper, the network on one device."""
    return module.module if isinstance(module, nn.DataParallel) else module.forward


def _is_random(node: fx.Node) -> bool:
    return "rand" in getattr(node.target, "__name__", str(node.target))


def _writes(node: fx.Node) -> bool:
    """Whether a node calls a method that changes its tensor: ``add_``, ``__setitem__``, …"""
    return node.op == "call_method" and str(node.target).endswith("_")
