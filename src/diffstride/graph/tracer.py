"""A network as a graph of calls whose every value is known: `torch.fx` with sizes.

Plain symbolic tracing stops at the first ``if x.shape[-1] % 2``. Here each call is also evaluated
while it is recorded, on fake tensors that have a shape and no data, so that control flow which
depends on shapes is followed, and the graph comes out with the value and the cost of each node.
The graph serves analysis only: nothing is ever run through it.
"""

import os
import re
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
    batch_of,
    check_batched,
    check_traceable,
    has_tensor,
    like_the_weights,
    name_inputs,
)
from diffstride.graph.fake_run import execute, shapes_only
from diffstride.graph.leaf_modules import Leaf, as_leaves, is_among, recorded_leaves
from diffstride.graph.value_proxies import KnownProxy
from diffstride.pooling.base import SizedPooling

PACKAGE = os.path.dirname(os.path.dirname(__file__))


@dataclass
class Trace:
    """A traced network.

    ``graph`` is in order of execution; ``values`` and ``multiply_adds`` hold what each node
    returned (fake tensors, numbers) and cost for the whole batch; ``owners`` the name of the
    module whose ``forward`` made the call. ``numbers`` holds the nodes whose values ``forward``
    turned into constants, with ``int()`` or an ``if`` say, each with the module that did.
    """

    model: nn.Module
    graph: fx.Graph
    fake_mode: FakeTensorMode
    batch: int
    values: dict[fx.Node, Any]
    multiply_adds: dict[fx.Node, int]
    owners: dict[fx.Node, str]
    numbers: dict[fx.Node, str]
    modules: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or None where it calls a function."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def label(self, node: fx.Node) -> str:
        """What to call a node in a message: the module's name, or the function and its owner."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.module(node)).__name__})"
        name = getattr(node.target, "__name__", str(node.target))
        return f"{name} in {self.owners[node] or 'the model itself'}"


def trace(model: nn.Module, example: Any, leaf_modules: Iterable[Leaf] = ()) -> Trace:
    """Record the calls that ``model(example)`` makes, without computing anything.

    The model runs in its present mode (training or evaluation) and is not changed; its hooks do
    not run. A module of `torch.nn`, a pooling layer, one with a ``stride`` and no children, and
    those in ``leaf_modules`` are single nodes; all others are looked into.

    Args:
        model: any network.
        example: its input, or a tuple of its inputs; only shapes matter, as floating-point tensors
            are taken to have the dtype of the weights, and all tensors to lie where they do.
        leaf_modules: names or classes of modules not to look into; if there are none, those that
            `convert` was given.

    Raises:
        ValueError: if the example is none, or the forward pass cannot be followed; names the module
            that is at fault.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
    >>> traced = trace(net, torch.zeros(1, 3, 8, 8))
    >>> [(node.name, tuple(value.shape)) for node, value in traced.values.items()][:2]
    [('input_1', (1, 3, 8, 8)), ('_0', (1, 8, 4, 4))]
    """
    inputs = as_inputs(example)
    check_traceable(model, inputs)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with shapes_only(model, fake_mode) as counter:
        fakes = tree_map_only(Tensor, partial(like_the_weights, model=model), inputs)
        tracer = Tracer(model, fakes, leaf_modules, counter)
        try:
            graph = tracer.trace(model)
        except ExampleError:
            raise
        except Exception as error:
            raise ValueError(tracer.complaint(error)) from error
    return Trace(
        model,
        graph,
        fake_mode,
        batch_of(inputs),
        tracer.values,
        tracer.multiply_adds,
        tracer.owners,
        tracer.numbers,
    )


class Tracer(fx.Tracer):
    def __init__(
        self,
        model: nn.Module,
        inputs: tuple,
        leaf_modules: Iterable[Leaf],
        counter: FlopCounterMode,
    ) -> None:
        super().__init__()
        self.leaves = as_leaves(leaf_modules) or recorded_leaves(model)
        names = {leaf for leaf in self.leaves if isinstance(leaf, str)}
        if unknown := names - {name for name, _ in model.named_modules()}:
            raise ValueError(f"leaf_modules: the model has no module named {unknown.pop()!r}")
        self.inputs, self.counter = inputs, counter
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.values: dict[fx.Node, Any] = {}
        self.multiply_adds: dict[fx.Node, int] = {}
        self.owners: dict[fx.Node, str] = {}
        self.numbers: dict[fx.Node, str] = {}
        self.stack = [""]
        self.evaluating = False

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        # Not left to fx, which makes a proxy of every argument, defaults included.
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
        if self.evaluating:
            return m.forward(*args, **kwargs)
        name = self.path_of_module(m)
        self.stack.append(name)
        if self.is_leaf_module(m, name):
            result = self.create_proxy("call_module", name, args, kwargs)
        else:
            # Not through __call__: the user's hooks should not meet proxies.
            result = m.forward(*args, **kwargs)
        self.stack.pop()  # left as it is by an error, to say where it arose
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluating or id(attr_val) not in self.names:
            return attr_val
        name = self.names[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        # Not left to fx, which looks through all parameters and stores constants in the model.
        name = self.names.setdefault(id(a), f"constant{len(self.names)}")
        self.tensors[name] = a
        return self.create_node("get_attr", name, (), {})

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        self.owners[node] = self.stack[-1]
        before = self.counter.get_total_flops()
        self.evaluating = True
        self.values[node] = self._evaluate(node)
        self.evaluating = False
        self.multiply_adds[node] = (self.counter.get_total_flops() - before) // 2
        return node

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.arguments[str(node.target)]
        if node.op == "get_attr":
            return self.tensors[str(node.target)]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        if node.op == "output":
            return args[0]
        module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        check_batched(module, node, args)
        return execute(module, node, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return KnownProxy(node, self)

    def note_number(self, node: fx.Node) -> None:
        """Take note that Python was told the value of a node."""
        self.numbers[node] = self.stack[-1]

    def to_bool(self, obj: Any) -> bool:
        self.note_number(obj.node)
        return bool(self.values[obj.node])

    def iter(self, obj: Any) -> Iterator:
        return iter([obj[i] for i in range(len(obj))])

    def keys(self, obj: Any) -> Any:
        return self.values[obj.node].keys()

    def complaint(self, error: Exception) -> str:
        """What to tell the user about an error raised while tracing."""
        name = self.stack[-1]
        module = self.root.get_submodule(name)
        kind, told = type(module).__name__, f"{_where(error)}: {_one_line(error)}"
        if not name:
            return (
                f"the forward pass of {kind} cannot be followed{told}; check that the example has "
                "the shape the model expects; if it has, move that operation into a module of its "
                "own and name it in leaf_modules"
            )
        if is_among(self.leaves, name, module):
            return (
                f"{name!r} ({kind}) is in leaf_modules, but cannot be run on shapes alone either"
                f"{told}; if the example is right, what it does depends on the data: give the "
                "network without it"
            )
        if self.is_leaf_module(module, name):
            return (
                f"{name!r} ({kind}) cannot be run on what it is given{told}; check that the "
                "example has the shape the model expects"
            )
        return (
            f"the forward pass cannot be followed into {name!r} ({kind}){told}; if the example is "
            f"right, exclude the module with leaf_modules=[{name!r}], its own strides then stay "
            "as they are"
        )


def _where(error: Exception) -> str:
    """The line of the network at which an error arose."""
    here = tuple(os.path.join(folder, "") for folder in (PACKAGE, os.path.dirname(torch.__file__)))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.line and not frame.filename.startswith(here):
            file = os.path.basename(frame.filename)
            return f" at {frame.line!r} ({file}, line {frame.lineno})"
    return ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    if made := re.match(r"(zeros|ones|empty|randn?)\(\) (takes 1 pos|received an invalid)", text):
        text += f" (write the sizes as one tuple, torch.{made[1]}((…)))"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
