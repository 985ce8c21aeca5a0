"""Convert the integer strides of a network into learnable ones."""

import inspect
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from diffstride._arguments import Limit, check_limits, check_network, check_window, each_limit
from diffstride._wording import counted
from diffstride.conversion.call_counting import count_calls_from_start
from diffstride.conversion.enlarging_modules import attach_mirrors
from diffstride.conversion.function_modules import find_functions, replace_functions
from diffstride.conversion.kernel_resampling import resample_convolution
from diffstride.conversion.module_strides import stride_of
from diffstride.conversion.network_copies import Model, check_unwrapped, deep_copy
from diffstride.conversion.placement import Order, check_order, place
from diffstride.conversion.pooled_groups import PooledGroup, group_calls
from diffstride.conversion.pooled_module import Pooled, attach_pooling, set_layers
from diffstride.conversion.recipes import keep_in_config
from diffstride.conversion.record import (
    Conversion,
    ConversionStep,
    record_costs,
    records,
    without_data,
)
from diffstride.conversion.stride_search import (
    PATCHIFIES,
    Filter,
    Search,
    check_filter,
    find_strided_calls,
)
from diffstride.conversion.strided_call import StridedCall
from diffstride.conversion.whole_map_pooling import pool_whole_maps
from diffstride.cost.consistency import STRIDE_FACTORS, failed_at, scaled_strides
from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.graph.example_inputs import as_inputs
from diffstride.graph.fake_run import NetworkRun, NetworkRunError, run_network
from diffstride.graph.leaf_modules import Leaf, as_leaves
from diffstride.graph.mirror import Mirror
from diffstride.graph.restoring import restoring
from diffstride.graph.stride_conflicts import StrideConflictError
from diffstride.graph.tracer import Trace, trace
from diffstride.pooling.adaptive import AdaptiveSpectralPooling
from diffstride.pooling.frozen import is_frozen
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import CPU, Edge
from diffstride.strides import stride_layers

LAYER_OPTIONS = (
    *("smoothness_factor", "trainable", "shared_stride", "lower_limit_stride"),
    *("upper_limit_stride", "edge", "straight_through"),
)
"""The arguments of `convert` that `DiffStride` takes."""

NOT_COMPARED = "include", "leaf_modules"
NOT_RECORDED = "model", "example", "filter_fn"
"""The arguments that are no options of a conversion: a filter is replaced by what it chose."""


@torch.inference_mode(mode=False)  # inference tensors could not be trained afterwards
def convert(
    model: Model,
    example: Any,
    *,
    order: Order = "auto",
    min_channels: int = 8,
    edge: Edge = "stopband",
    filter_fn: Filter | None = None,
    include: Iterable[str] = (),
    patchify: bool = False,
    keep_ones: bool = False,
    leaf_modules: Iterable[Leaf] = (),
    smoothness_factor: float = 4.0,
    trainable: bool = True,
    shared_stride: bool = False,
    lower_limit_stride: Limit = None,
    upper_limit_stride: Limit = None,
    straight_through: bool = True,
) -> Model:
    """Make the integer strides of a convolutional network learnable.

    Every module that strides (convolutions, max and average pooling, blur pooling and others) runs
    at stride 1 and gets a `DiffStride` that starts at the old stride. With ``edge="stopband"`` the
    maps keep their sizes. Modules whose outputs meet, in an addition or a concatenation for
    instance, share one layer.

    The layer comes before a convolution, whose kernel is resampled to the coarse grid, and after
    other modules (see ``order``). So the network costs little more than before. It computes
    about the same as before, and exactly the same where no kernel is resampled. The exception is
    detail that is too fine for the smaller maps, which it removes.

    The given model is not changed. In the copy, modules keep their names, classes (a ``Conv2d``
    becomes a subclass of it), hooks, dtype, device, memory format, mode and ``requires_grad``, and
    all parameters, except that kernels are resampled. A checkpoint of the original network
    lacks only the strides; its kernels are resampled when it is loaded.

    Args:
        model: any convolutional network that `torch.fx` can trace.
        example: an input, a tuple of inputs, or a dictionary of them by the names of the arguments
            of ``forward``, without any that it takes by keyword only; only shapes matter.
        order: where modules are pooled. ``"before"``: convolutions of torch before, with their
            kernel resampled, all else after. ``"after"``: all after, at stride 1, which is exact
            and costs a convolution up to the square of its stride; only pointwise convolutions
            before, which is exact, too. ``"auto"``: as ``"before"``, but convolutions whose patches
            do not overlap after, and those of few channels on top of their stride.
        min_channels: with ``order="auto"``, a convolution of fewer input channels keeps its stride
            and is pooled after it from a stride of 1, as its input, the image, has fine detail. 0
            treats all alike. It counts as 0 where a layer at a stride of 1 changes the map
            (``"passband"``, ``straight_through=False``) or may not start there.
        edge: of the pooling layers; ``"stopband"`` keeps the sizes of the maps.
        filter_fn: called with each module that strides and its name; if it returns false, the
            module is left out.
        include: names of modules of stride 1 that get a layer as well; its stride starts at 1.
        patchify: whether to convert convolutions whose patches do not overlap
            (1 < kernel <= stride).
        keep_ones: whether an axis along which a module does not stride, beside one along which it
            does, keeps its samples: in ``stride=(1, 2)`` only the second stride learns.
        leaf_modules: names or classes of modules that are not traced into and not converted.
        smoothness_factor, trainable, shared_stride: as for `DiffStride`.
        lower_limit_stride, upper_limit_stride: likewise; one number, or one for each axis.
        straight_through: likewise; weights trained on whole maps lose least if all bins that fit
            into the smaller maps are kept, as by default.

    Returns:
        The converted copy; `report` lists what was converted and what was left out.

    Raises:
        TypeError: if ``model`` is no network, but its name or what builds it; if ``filter_fn`` does
            not take a module and its name.
        ValueError: if the forward pass cannot be traced, an operation accepts maps of one size
            only, a module of ``include`` cannot be converted, or no module can; if all are
            converted already, with other arguments; if a stride lies outside the limits; if the
            model is on the meta device, or has another attribute ``conversion``.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    >>> converted = convert(net, torch.zeros(1, 8, 32, 32))
    >>> type(converted[0]).__name__, converted[0].stride, converted[0].pooling.stride_values()
    ('PooledConv2d', (1, 1), (2.0, 2.0))
    >>> converted(torch.zeros(1, 8, 32, 32)).shape
    torch.Size([1, 8, 8, 8])
    """
    options: dict[str, Any] = {
        name: value for name, value in locals().items() if name not in NOT_RECORDED
    }
    _check_model(model)
    check_filter(filter_fn)
    check_order(order)
    check_window(smoothness_factor, edge)
    limits = lower_limit_stride, upper_limit_stride
    numbers_of_axes = [len(each) for each in limits if isinstance(each, Sequence) and each]
    check_limits(*limits, axes=numbers_of_axes[0] if numbers_of_axes else None)
    example = as_inputs(model, example)
    converted = deep_copy(model)
    leaf_modules = as_leaves(leaf_modules)
    include = (include,) if isinstance(include, str) else tuple(include)
    starts_at_1 = all((limit or 1.0) <= 1.0 for limit in each_limit(lower_limit_stride, 1))
    keeps = straight_through and edge == "stopband" and starts_at_1
    least = min_channels if keeps else 0
    options |= {"include": include, "leaf_modules": leaf_modules}
    chosen = include, patchify, keep_ones, leaf_modules, shared_stride, upper_limit_stride
    found = _find(converted, example, Search(order, least, filter_fn, *chosen))
    if not found.groups:
        _check_as_before(model, options)
    if filter_fn is None:
        _warn_of_conflicts(found)
    _record(converted, found, example, options)
    _attach_layers(found, {name: options[name] for name in LAYER_OPTIONS})
    attach_mirrors(found.trace, found.mirrors)
    count_calls_from_start(converted)
    with restoring(converted):
        _check_runs(model, converted, found.trace, example)
    keep_in_config(converted)
    return converted


class Found(NamedTuple):
    """What a network has to convert.

    ``mirrors`` has the strided call that each enlarging call mirrors, ``left_out`` the reason for
    each module that is left out, and ``conflicts`` those whose strides cannot be shared.
    """

    trace: Trace
    groups: list[PooledGroup]
    mirrors: dict[fx.Node, Mirror]
    left_out: dict[str, str]
    conflicts: list[str]


def _find(converted: nn.Module, example: Any, search: Search) -> Found:
    """Find what to convert in the copy of a network; modules take the place of functions there.

    Raises:
        ValueError: as of `convert`; or there is nothing.
    """
    with restoring(converted):
        traced = trace(converted, example, search.leaf_modules)
        functions = find_functions(traced, example)
        found = None if functions else _find_in(traced, search)
    if found is None:
        replace_functions(functions)
        with restoring(converted):
            traced = trace(converted, example, search.leaf_modules)
            found = _find_in(traced, search)
    if found.groups or stride_layers(converted):
        return found
    if not search.patchify and PATCHIFIES in found.left_out.values():
        with restoring(converted):  # raises if its patches cannot be converted, either
            _find_in(found.trace, search._replace(patchify=True))
    if is_frozen(converted):
        raise ValueError(
            f"this {type(converted).__name__} was frozen by diffstride.freeze, so its strides no "
            "longer learn: use it as it is, or convert a network built anew"
        )
    reasons = "".join(f"; {name}: {reason}" for name, reason in found.left_out.items())
    raise ValueError(f"{type(converted).__name__} has no stride to convert{reasons}")


def _find_in(traced: Trace, search: Search) -> Found:
    names = [name for name in search.include if not isinstance(traced.modules.get(name), Pooled)]
    calls, left_out = find_strided_calls(traced, search, names)
    for call in calls:
        if not search.shared_stride:
            call.kept = _kept_axes(call.strides, search.keep_ones, search.upper_limit_stride)
    place(calls, traced, search.order, search.min_channels)
    pool_whole_maps(traced)
    try:
        groups, mirrors, conflicts = group_calls(traced, calls, names, search.shared_stride)
    except StrideConflictError as error:
        _explain_patches(traced.model, calls, error)
        raise
    return Found(traced, groups, mirrors, left_out | conflicts, list(conflicts))


def _kept_axes(strides: tuple[int, ...], keep_ones: bool, upper: Limit) -> frozenset[int]:
    """The axes of stride 1 that keep their samples, beside others that learn."""
    each = enumerate(zip(strides, each_limit(upper, len(strides)), strict=False))
    kept = {axis for axis, (stride, limit) in each if stride == 1 and (keep_ones or limit == 1)}
    return frozenset(kept if len(kept) < len(strides) else ())


def _explain_patches(model: nn.Module, calls: list[StridedCall], why: ValueError) -> None:
    """Refuse a network, such as a vision transformer, that strides by fixed patches only."""
    if calls and all(call.patchifies for call in calls):
        names = list(dict.fromkeys(repr(call.name) for call in calls))
        cut = "cuts" if len(names) == 1 else "cut"
        reason = str(why).partition(", but learned")[0]
        raise ValueError(
            f"{type(model).__name__} has no stride that could learn, with patchify=True or "
            f"without: {', '.join(names)} {cut} the image into patches, and the network is built "
            f"for their number ({reason}). Take a network whose layers shrink maps one after the "
            "other"
        ) from why


def _warn_of_conflicts(found: Found) -> None:
    """Warn if only one module learns, which keeps its stride, as others could not share theirs."""
    kind = type(found.trace.model).__name__
    calls = [call for group in found.groups for call in group.calls]
    if found.conflicts and [call.placement for call in calls] == ["on top"]:
        warnings.warn(
            f"of this {kind} only {calls[0].name!r} learns, on top of its stride: "
            f"{counted(len(found.conflicts), 'other strided module')} cannot share strides "
            "(diffstride.report says why)",
            stacklevel=4,  # the caller of convert, behind its decorator
        )


def _check_as_before(model: nn.Module, options: dict[str, Any]) -> None:
    """Refuse other arguments for a network of which everything is converted already."""
    steps = [step for record in records(model).values() for step in record.steps]
    defaults = inspect.signature(convert).parameters
    for name in [each for each in options if each not in NOT_COMPARED] if steps else ():
        before = [step.options[name] for step in steps]
        if options[name] not in (*before, defaults[name].default):
            raise ValueError(
                f"this {type(model).__name__} is converted already, with {name}={before[0]!r}, so "
                f"{name}={options[name]!r} would have no effect: convert the network as it was "
                f"before, or leave {name} out"
            )


def _record(converted: nn.Module, found: Found, example: Any, options: dict[str, Any]) -> None:
    """Store what is converted on the network, with its cost before."""
    conversion = getattr(converted, "conversion", None)
    if not isinstance(conversion, Conversion):
        conversion = record_costs(found.trace, example, options["leaf_modules"])
    leaves = (*conversion.leaf_modules, *options["leaf_modules"])
    conversion.leaf_modules = tuple(dict.fromkeys(leaves))
    conversion.left_out = found.left_out
    calls = [call for group in found.groups for call in group.calls]
    modules = tuple(dict.fromkeys(call.name for call in calls))
    training = found.trace.model.training
    step = ConversionStep(without_data(example), options, modules, training)
    conversion.steps.append(step)
    for call in calls:
        conversion.strides[call.name] = stride_of(call.module, len(call.strides))
        conversion.placements[call.name] = call.placement
        conversion.only_after[call.name] = call.only_after
    for enlarging, mirror in found.mirrors.items():
        name, of = str(enlarging.target), str(mirror.call.target)
        conversion.mirrors[name] = (*conversion.mirrors.get(name, ()), of)
    converted.conversion = conversion  # type: ignore[assignment]


def _attach_layers(found: Found, layer_options: dict[str, Any]) -> None:
    """Give the modules of each group its layer; a module with calls in several groups gets all."""
    layers: dict[fx.Node, Any] = {}
    for group in found.groups:
        pooling = group.pooling or _new_pooling(group, **layer_options)
        pooling.to(found.trace.values[group.calls[0].node].device).train(found.trace.model.training)
        for call in group.calls:
            module, crop_pads, taps = call.module, group.crop_pads[call.module], ()
            layers[call.node] = pooling, crop_pads
            if isinstance(module, Pooled):
                continue  # another of its calls came before
            if call.placement == "before" and not call.pointwise:
                taps = call.coarse_taps(group.size, crop_pads)
                resample_convolution(module, taps)  # pyright: ignore[reportArgumentType]
            attach_pooling(
                module, pooling, crop_pads, call.placement, group.sharers(call, found.trace), taps
            )
    for module in {found.trace.module(node) for node in layers}:
        own: Any = module
        each = [layers.get(n, (own.pooling, own.crop_pads)) for n in found.trace.calls(own)]
        if len(set(each)) > 1:
            set_layers(module, each)


def _check_runs(model: nn.Module, converted: nn.Module, traced: Trace, example: Any) -> None:
    """Check on shapes alone that the converted network runs, at its and at other strides."""

    def run() -> NetworkRun:
        return run_network(converted, example, traced.fake_mode)

    try:
        shapes = run().shapes
    except NetworkRunError as error:
        with suppress(NetworkRunError):  # if it fails as well, the network reads numbers
            run_network(model, example)
            raise ValueError(f"converted, {error.where} would fail ({error.why})") from error
        return
    layers = list(stride_layers(converted).values())
    keep_sizes = all(getattr(layer, "edge", "") == "stopband" for layer in layers)
    if keep_sizes and shapes != traced.shapes:
        raise ValueError(f"converted, the network would return {shapes}, not {traced.shapes}")
    for factor in reversed(STRIDE_FACTORS):
        try:
            with scaled_strides(layers, factor):
                run()
        except NetworkRunError as error:
            if factor < 1 or not _has_empty_maps(converted, example):
                raise ValueError(failed_at(factor, error, [])) from error


def _has_empty_maps(converted: nn.Module, example: Any) -> bool:
    """Whether maps may be too small at larger strides, which the cost of a network knows."""
    with suppress(ValueError):  # the cost is unknown
        return MultiplyAdds(converted, example).has_empty_maps
    return False


def _check_model(model: nn.Module) -> None:
    check_network(model)
    check_unwrapped(model)
    kind = type(model).__name__
    if not isinstance(getattr(model, "conversion", None), (Conversion, NoneType)):
        raise ValueError(
            f"this {kind} has an attribute 'conversion' of its own, the name under which convert "
            "stores its record: rename it, or convert a module that contains the network"
        )
    if not any(model.children()) and max(stride_of(model)) > 1:
        raise ValueError(
            f"the model is a single {kind}, which itself strides: put it into a network, as in "
            "convert(nn.Sequential(model), example)"
        )


def _new_pooling(group: PooledGroup, **options: Any) -> nn.Module:
    """A layer that starts at the strides of these calls, or keeps the size of their maps."""
    calls, (fixed, kept) = group.calls, group.unlearned
    sizes = [size if i in fixed else None for i, size in enumerate(calls[0].strided_size)]
    if len(fixed | kept) == len(sizes):
        return AdaptiveSpectralPooling(sizes)
    strides = tuple(1.0 if i in fixed else each for i, each in enumerate(calls[0].strides))
    options |= {"fixed_size": sizes} if fixed else {}
    least = [stride * group.least_factor for stride in calls[0].strides]
    if max(least) > 1:
        given = each_limit(options["lower_limit_stride"], len(least))
        lower = [max(own, limit or 1.0) for own, limit in zip(least, given, strict=True)]
        options["lower_limit_stride"] = lower[0] if len(set(lower)) == 1 else tuple(lower)
    if kept:
        for name in ("lower_limit_stride", "upper_limit_stride"):
            limits = enumerate(each_limit(options[name], len(sizes)))
            options[name] = tuple(1.0 if i in kept else limit for i, limit in limits)
    try:
        with torch.device(CPU):  # whatever the default device is
            return DiffStride(strides, **options)
    except ValueError as error:
        names = " and ".join(dict.fromkeys(repr(call.name) for call in calls))
        message = f"{names} cannot have such a layer: {error}, or use filter_fn to leave it out"
        raise ValueError(message) from error
