"""Any convolutional network with integer strides, turned into the same one with learnable ones."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffstride._arguments import check_limits, check_window
from diffstride._torch_compat import tree_map_only
from diffstride.conversion.pooled_module import Margin, Pooled, attach_pooling
from diffstride.conversion.strided_modules import Filter, Place, common_size, find_places, stride_of
from diffstride.graph.example_inputs import Model, check_unwrapped, copied
from diffstride.graph.leaf_modules import Leaf, LeafModulesRecord, as_leaves
from diffstride.graph.stride_groups import Resolutions, UnshareableError, resolve
from diffstride.graph.tracer import Trace, trace
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import CPU
from diffstride.strides import stride_layers

SEVERAL = "is called several times, on maps that cannot share a stride"


@dataclass
class Layer:
    """Places that share their strides, and with them one pooling layer.

    ``margins`` fit what each module returns to the size that its pooling is given.
    """

    places: list[Place]
    margins: dict[nn.Module, tuple[Margin, ...]]
    pooling: nn.Module | None


@dataclass
class Conversion(LeafModulesRecord):
    """What `convert` did, kept on the model as ``model.conversion`` for `report`.

    ``strides`` maps each converted module to its old stride, ``left_out`` each of the others to a
    reason; ``multiply_adds`` holds the cost of one sample before, in total (``""``) and by module.
    ``example`` has the shapes of the example and no data; ``leaf_modules`` are as given.
    """

    example: Any
    leaf_modules: tuple[Leaf, ...] = ()
    strides: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)


@torch.inference_mode(mode=False)  # what is made there could not be trained
def convert(
    model: Model,
    example: Any,
    *,
    edge: str = "stopband",
    filter_fn: Filter | None = None,
    include: Iterable[str] = (),
    patchify: bool = False,
    leaf_modules: Iterable[Leaf] = (),
    smoothness_factor: float = 4.0,
    trainable: bool = True,
    shared_stride: bool = False,
    lower_limit_stride: float | None = None,
    upper_limit_stride: float | None = None,
    straight_through: bool = True,
) -> Model:
    """The same network with a learnable stride in place of every integer one.

    Every module that strides (convolutions, max and average pooling, blur pooling and its like)
    runs at stride 1 and is followed by a `DiffStride` that starts at the old stride, so that with
    ``edge="stopband"`` the maps keep their sizes. Modules on branches that meet again, in an
    addition or a concatenation say, share one. A pointwise convolution is pooled first, which is
    the same and costs less.

    The model given is left as it is. In the copy returned modules keep their names, classes
    (a ``Conv2d`` becomes a subclass of it), parameters, hooks, dtype, device, memory format, mode
    and ``requires_grad``; a checkpoint of the unconverted network lacks nothing but the strides.

    Args:
        model: any network of convolutions that `torch.fx` can follow.
        example: an input, or a tuple of inputs; only shapes matter.
        edge: of the pooling layers: ``"stopband"`` keeps the sizes of the maps.
        filter_fn: called with each candidate and its name; false leaves the module out.
        include: names of modules of stride 1 that get a layer, too: a learned stride may start
            at 1.
        patchify: whether to convert convolutions whose patches do not overlap
            (1 < kernel <= stride).
        leaf_modules: names or classes of modules that are not looked into and stay as they are.
        smoothness_factor, trainable, shared_stride: as for `DiffStride`.
        lower_limit_stride, upper_limit_stride: likewise.
        straight_through: likewise, but by default true: weights that were trained with whole maps
            lose least when all that fits into the smaller ones is kept.

    Returns:
        The converted copy; `report` says what was converted and what was left out.

    Raises:
        ValueError: if the forward pass cannot be followed, an operation takes maps of one size
            only, a module of ``include`` cannot be converted, or none can; if a stride lies
            outside the limits; if the model is on the meta device, or has an attribute
            ``conversion`` of its own.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    >>> converted = convert(net, torch.zeros(1, 3, 32, 32))
    >>> type(converted[0]).__name__, converted[0].stride, converted[0].pooling.stride_values()
    ('PooledConv2d', (1, 1), (2.0, 2.0))
    >>> converted(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 8, 8])
    """
    _check_model(model)
    check_window(smoothness_factor, edge)
    check_limits(lower_limit_stride, upper_limit_stride)
    converted = copied(model)
    leaf_modules = as_leaves(leaf_modules)
    traced = trace(converted, example, leaf_modules)
    modules = dict(converted.named_modules())
    include = (include,) if isinstance(include, str) else include
    include = tuple(name for name in include if not isinstance(modules.get(name), Pooled))
    places, left_out = find_places(traced, filter_fn, include, patchify, leaf_modules)
    layers = _plan(traced, places, left_out, include)
    if not (layers or stride_layers(converted)):
        reasons = "".join(f"; {name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"{type(model).__name__} has no stride to convert{reasons}")
    conversion = getattr(converted, "conversion", None)
    if not isinstance(conversion, Conversion):
        conversion = _record(traced, example, leaf_modules)
    conversion.left_out = left_out
    conversion.strides |= {place.name: place.strides for layer in layers for place in layer.places}
    converted.conversion = conversion  # type: ignore[assignment]
    for layer in layers:
        pooling = layer.pooling or _pooling(
            layer.places,
            smoothness_factor=smoothness_factor,
            trainable=trainable,
            shared_stride=shared_stride,
            lower_limit_stride=lower_limit_stride,
            upper_limit_stride=upper_limit_stride,
            edge=edge,
            straight_through=straight_through,
        ).to(traced.values[layer.places[0].call].device)
        _attach(layer, pooling.train(converted.training))
    return converted


def _check_model(model: nn.Module) -> None:
    check_unwrapped(model)
    kind = type(model).__name__
    if not isinstance(getattr(model, "conversion", None), (Conversion, NoneType)):
        raise ValueError(
            f"this {kind} has an attribute 'conversion' of its own, the name under which convert "
            "keeps its record: rename it, or convert a module that holds the network"
        )
    if not any(model.children()) and max(stride_of(model)) > 1:
        raise ValueError(
            f"the model is a single {kind}, which itself strides: put it into a network, as in "
            "convert(nn.Sequential(model), example)"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no data, nor could the strides have: "
                "call model.to_empty(device=...) and load the weights first"
            )


def _pooling(places: list[Place], **options: Any) -> nn.Module:
    """A layer that starts at the strides of these places."""
    try:
        with torch.device(CPU):  # that of the module is taken afterwards
            return DiffStride(places[0].strides, **options)
    except ValueError as error:
        names = " and ".join(dict.fromkeys(repr(place.name) for place in places))
        message = f"{names} cannot have such a layer: {error}, or use filter_fn to leave it out"
        raise ValueError(message) from error


def _plan(
    traced: Trace, places: list[Place], left_out: dict[str, str], include: tuple[str, ...]
) -> list[Layer]:
    """The layers to attach; places that cannot follow a stride of their own join ``left_out``."""
    pooled = set(stride_layers(traced.model).values())
    while True:
        by_call = {place.call: place for place in places}
        calls = [n for n in traced.graph.nodes if n in by_call or traced.module(n) in pooled]
        try:
            return _layers(resolve(traced, calls), by_call)
        except UnshareableError as error:
            names = {by_call[call].name for call in error.calls if call in by_call}
            if not names:
                raise
            if refused := names.intersection(include):
                name = refused.pop()
                raise ValueError(
                    f"include: {name!r} cannot have a stride of its own: {error}"
                ) from error
            left_out.update(dict.fromkeys(sorted(names), str(error)))
            places = [place for place in places if place.name not in names]


def _layers(found: Resolutions, by_call: dict[fx.Node, Place]) -> list[Layer]:
    """One layer for each resolution; modules called at several of them join these."""
    layers: list[Layer] = []
    for calls in found.classes():
        layer = _layer(found, calls, by_call)
        modules = {place.module for place in layer.places}
        for other in [other for other in layers if modules & other.margins.keys()]:
            layers.remove(other)
            layer = _join(other, layer)
        layers.append(layer)
    return [layer for layer in layers if layer.places]


def _layer(found: Resolutions, calls: list[fx.Node], by_call: dict[fx.Node, Place]) -> Layer:
    places = [by_call[call] for call in calls if call in by_call]
    pooled = [call for call in calls if call not in by_call]
    if len({found.trace.module(call) for call in pooled}) > 1:
        names = " and ".join(dict.fromkeys(repr(str(call.target)) for call in pooled))
        raise UnshareableError(f"the maps of {names} meet, but their strides are not shared")
    if len({place.strides for place in places}) > 1:
        strides = ", ".join(f"{place.strides} in {place.name}" for place in places)
        raise UnshareableError(f"meets maps of another stride: {strides}", calls)
    if pooled:
        size = tuple(dim.size for dim in found.input_dims(pooled[0]))
    else:
        size = tuple(common_size(places, axis) for axis in range(len(places[0].strides)))
    margins = {place.module: place.margins(size) for place in places}
    if any(place.margins(size) != margins[place.module] for place in places):
        raise UnshareableError(SEVERAL, calls)
    return Layer(places, margins, found.trace.module(pooled[0]) if pooled else None)


def _join(one: Layer, two: Layer) -> Layer:
    places = one.places + two.places
    same = len({place.strides for place in places}) == 1 and all(
        one.margins[module] == two.margins[module]
        for module in one.margins.keys() & two.margins.keys()
    )
    if not same or (one.pooling and two.pooling):
        raise UnshareableError(SEVERAL, [place.call for place in places])
    return Layer(places, one.margins | two.margins, one.pooling or two.pooling)


def _attach(layer: Layer, pooling: nn.Module) -> None:
    first = {place.module: place for place in reversed(layer.places)}
    for module, place in first.items():
        attach_pooling(module, pooling, layer.margins[module], pool_first=place.pointwise)


def _record(traced: Trace, example: Any, leaf_modules: tuple[Leaf, ...]) -> Conversion:
    shapes = tree_map_only(Tensor, lambda x: torch.empty_like(x, device="meta"), example)
    owners = {
        node: str(node.target) if node.op == "call_module" else traced.owners[node]
        for node in traced.multiply_adds
    }
    parts, costs = _converted_parts(traced.model), {"": 0}
    for node, cost in traced.multiply_adds.items():
        if any(f"{owners[node]}.".startswith(f"{prefix}.") for prefix in parts):
            continue  # what it costs now is not what it did
        costs[""] += cost
        if node.op == "call_module":
            costs[owners[node]] = costs.get(owners[node], 0) + cost
    conversion = Conversion(shapes, leaf_modules)
    conversion.multiply_adds = {name: cost // traced.batch for name, cost in costs.items()}
    for prefix, part in parts.items():
        for name, cost in part.multiply_adds.items():
            conversion.multiply_adds[f"{prefix}.{name}" if name else prefix] = cost
        conversion.multiply_adds[""] += part.multiply_adds[""]
        conversion.strides |= {f"{prefix}.{name}": old for name, old in part.strides.items()}
    return conversion


def _converted_parts(model: nn.Module) -> dict[str, Conversion]:
    """The records of the parts of a network that were converted before, by name.

    A part of such a part stands in its record already.
    """
    parts: dict[str, Conversion] = {}
    for name, module in model.named_modules():
        record = vars(module).get("conversion")
        inside = any(name.startswith(f"{part}.") for part in parts)
        if isinstance(record, Conversion) and not inside:
            parts[name] = record
    return parts
