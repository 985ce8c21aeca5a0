"""Make modules of the functions that pool or enlarge maps, so that `convert` can convert them.

``F.max_pool2d(x, 2)`` in a ``forward`` has no name, no parameters and no place for a pooling layer.
The module whose ``forward`` calls it gets a child, here an ``nn.MaxPool2d(2)``, which is called
instead. Calls are told apart by function, channels and how often they came in that ``forward``. One
with other arguments than at conversion calls the function.
"""

import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

from diffstride.conversion.enlarging_modules import ENLARGING
from diffstride.conversion.mixed_classes import Mixin, mix_in
from diffstride.conversion.module_strides import stride_of
from diffstride.graph.fake_run import NetworkRunError, run_network
from diffstride.graph.tracer import Trace

MAX = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
MAX_OF_TORCH = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
INTERPOLATE = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")

# The module that does what a function does, and the names of the arguments behind the map.
MODULES: dict[Callable[..., Any], tuple[type[nn.Module], tuple[str, ...]]] = {
    F.interpolate: (nn.Upsample, INTERPOLATE),
    torch.pixel_shuffle: (nn.PixelShuffle, ("upscale_factor",)),
    F.max_pool1d: (nn.MaxPool1d, MAX),
    F.max_pool2d: (nn.MaxPool2d, MAX),
    F.max_pool3d: (nn.MaxPool3d, MAX),
    torch.max_pool1d: (nn.MaxPool1d, MAX_OF_TORCH),
    torch.max_pool2d: (nn.MaxPool2d, MAX_OF_TORCH),
    torch.max_pool3d: (nn.MaxPool3d, MAX_OF_TORCH),
    F.avg_pool1d: (nn.AvgPool1d, AVERAGE[:-1]),
    F.avg_pool2d: (nn.AvgPool2d, AVERAGE),
    F.avg_pool3d: (nn.AvgPool3d, AVERAGE),
}

# Of one sample: a slice. With a single spatial axis, the last may be channels.
AVERAGES = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


DEFAULTS: dict[str, Any] = {
    **{"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False},
    **{"count_include_pad": True, "divisor_override": None, "size": None, "mode": "nearest"},
    **{"align_corners": None, "recompute_scale_factor": None, "antialias": False},
}
Key = tuple[type[nn.Module], int]  # a kind of module, and the channels of the map


class Call(NamedTuple):
    """A call of a function in a ``forward``: of which module, with how many channels, and when."""

    module: type[nn.Module]
    channels: int
    index: int


Replacements = dict[nn.Module, dict[Call, tuple[nn.Module, dict[str, Any]]]]
"""For each module that calls functions, the module to call instead and the call's arguments."""


class CallsModules(Mixin):
    """Mixed into the class of a module: children are called in place of functions.

    The class keeps its name, since it is a user's own, such as that of the network.

    Attributes:
        function_modules: the name of the child for each such call, and the call's arguments.
    """

    class_prefix = ""
    function_modules: dict[Call, tuple[str, dict[str, Any]]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Replacing(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class _Watching(TorchFunctionMode):
    """Hands the calls of functions in `MODULES` and of slices to `called`.

    Those in modules inside, too.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        func = operator.getitem if func is Tensor.__getitem__ else func
        kind = _kind_of(func, args)
        if kind is None:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        options = _options(func, args, kwargs)
        return self.called((kind, int(x.shape[1])), options, x, lambda: func(*args, **kwargs))

    def called(self, key: Key, options: Any, x: Any, run: Callable[[], Any]) -> Any:
        """The result of a call: ``run()``, or what is called instead on the map ``x``."""
        raise NotImplementedError


def _kind_of(function: Any, args: Any) -> type[nn.Module] | None:
    """The kind of module that does what a function does, or a slice with steps; None if none."""
    if function is operator.getitem:
        return AVERAGES.get(len(_steps(args[1])))
    return MODULES[function][0] if function in MODULES else None


def _options(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call behind the map by name, without those that have their default."""
    names = ("index",) if function is operator.getitem else MODULES[function][1]
    given = dict(zip(("input", *names), args, strict=False)) | kwargs
    return {
        name: value
        for name, value in given.items()
        if name not in ("input", "index") and not _is_default(name, value)
    }


def _is_default(name: str, value: Any) -> bool:
    # By type first: while a network is traced, comparing a size would be part of it.
    default = DEFAULTS.get(name, ...)
    return type(value) is type(default) and value == default


def _steps(index: Any) -> tuple[int, ...]:
    """The steps of a slice of maps, ``x[:, :, ::2, ::2]``, along its axes; empty for all else."""
    parts: Any = index if isinstance(index, tuple) else ()
    if parts and parts[0] is ...:
        parts = (slice(None), slice(None), *parts[1:])
    if len(parts) < 3 or any(type(part) is not slice for part in parts):
        return ()
    fields = [(part.start or 0, part.stop, part.step or 1) for part in parts]
    steps = tuple(step for *_, step in fields[2:])
    if fields != [(0, None, 1), (0, None, 1), *((0, None, step) for step in steps)]:
        return ()
    return steps if all(type(step) is int and step > 1 for step in steps) else ()


class _Replacing(_Watching):
    def __init__(self, owner: CallsModules) -> None:
        super().__init__()
        self.owner = owner
        self.counts: Counter[Key] = Counter()

    def called(self, key: Key, options: Any, x: Any, run: Callable[[], Any]) -> Any:
        name, expected = self.owner.function_modules.get(Call(*key, self.counts[key]), ("", {}))
        if name and options != expected:
            return run()  # an additional call: the one that is expected may come later
        self.counts[key] += 1
        return getattr(self.owner, name)(x) if name else run()


class _Recording(_Watching):
    """Records the calls that the ``forward`` of each module makes itself, in order.

    The counts are those of the innermost module, with the modules inside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[nn.Module, Call, dict[str, Any]]] = []
        self.stack: list[tuple[nn.Module, Counter[Key]]] = []

    def called(self, key: Key, options: Any, x: Any, run: Callable[[], Any]) -> Any:
        if self.stack:
            owner, counts = self.stack[-1]
            self.calls.append((owner, Call(*key, counts[key]), options))
        for _, counts in self.stack:
            counts[key] += 1
        return run()

    @contextmanager
    def of_modules(self) -> Iterator[None]:
        """Follow which module runs in this thread; the hooks are those of all."""
        thread = threading.get_ident()

        def push(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread:
                self.stack.append((module, Counter()))

        def pop(*_: Any) -> None:
            if threading.get_ident() == thread:
                self.stack.pop()

        enter = module_hooks.register_module_forward_pre_hook(push)
        leave = module_hooks.register_module_forward_hook(pop, always_call=True)
        try:
            with self:
                yield
        finally:
            enter.remove()
            leave.remove()


def find_functions(trace: Trace, example: Any) -> Replacements:
    """The functions that stride or enlarge: by the module that calls them, the module to call.

    Functions stay where their arguments depend on sizes, where they are called with other arguments
    each time, or where the network does not run on shapes alone.
    """
    nodes = [node for node in trace.graph.nodes if _kind_of(node.target, node.args) is not None]
    if not any(_module_for(trace, node) for node in nodes):
        return {}
    recording = _Recording()
    try:
        with recording.of_modules():
            run_network(trace.model, example, trace.fake_mode)
    except NetworkRunError:
        return {}
    found: Replacements = {}
    for owner, own in _by_owner(trace, nodes).items():
        calls = [each[1:] for each in recording.calls if each[0] is owner]
        if len(calls) == len(own):  # else the trace differs
            found[owner] = _modules_of(trace, calls, own)
    return {owner: modules for owner, modules in found.items() if modules}


def _modules_of(
    trace: Trace, calls: list[tuple[Call, dict[str, Any]]], nodes: list[fx.Node]
) -> dict[Call, tuple[nn.Module, dict[str, Any]]]:
    """The module for each call of one ``forward``, if all that are told apart by it are alike."""
    options: dict[Call, list[dict[str, Any]]] = {}
    modules: dict[Call, nn.Module | None] = {}
    for (call, given), node in zip(calls, nodes, strict=True):
        options.setdefault(call, []).append(given)
        modules[call] = _module_for(trace, node)
    return {
        call: (module, options[call][0])
        for call, module in modules.items()
        if module is not None and all(each == options[call][0] for each in options[call])
    }


def replace_functions(found: Replacements) -> None:
    """Have modules call the given modules in place of functions, in place."""
    for owner, modules in found.items():
        for call, (module, options) in modules.items():
            _add(owner, call, module, options)


def _by_owner(trace: Trace, nodes: list[fx.Node]) -> dict[nn.Module, list[fx.Node]]:
    """The nodes of each module that may call modules instead."""
    owners: dict[nn.Module, list[fx.Node]] = {}
    for node in nodes:
        owner = trace.modules[trace.owners[node]]
        if "forward" not in vars(owner):
            owners.setdefault(owner, []).append(node)
    return owners


def _module_for(trace: Trace, node: fx.Node) -> nn.Module | None:
    """The module that does what a call does; None if it keeps sizes or has no such module."""
    if node.target is operator.getitem:
        steps, source = _steps(node.args[1]), trace.values[node.args[0]]  # type: ignore[index]
        is_map = isinstance(source, Tensor) and source.dim() == 2 + len(steps)
        # A slice is a view: what is written to it changes its source.
        if (
            not is_map
            or not source.is_floating_point()
            or any(map(trace.changes_input, node.users))
        ):
            return None
        return AVERAGES[len(steps)](1, steps)  # type: ignore[arg-type]
    module, options = MODULES[node.target][0], _options(node.target, node.args, node.kwargs)  # type: ignore[index]
    if _has_node(options) or "antialias" in options or "return_indices" in options:
        return None
    if module is nn.Upsample and ("size" in options or options.get("scale_factor") is None):
        return None
    try:
        made = module(**options)
    except TypeError:
        return None
    return made if isinstance(made, ENLARGING) or max(stride_of(made, 3)) > 1 else None


def _has_node(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return bool(found)


def _add(owner: nn.Module, call: Call, module: nn.Module, options: dict[str, Any]) -> None:
    if not isinstance(owner, CallsModules):
        mix_in(owner, CallsModules)
        owner.function_modules = {}  # type: ignore[assignment]
    names: Any = owner.function_modules
    stem = f"{type(module).__name__.lower()}_{len(names)}"
    name = stem
    while hasattr(owner, name):
        name += "_"
    module.train(owner.training)
    owner.add_module(name, module)
    names[call] = name, options
