"""Report a network: its strides, map sizes and cost, and what a conversion did."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from diffstride._arguments import check_network
from diffstride._torch_compat import uncompiled
from diffstride.conversion.pooled_module import Pooled
from diffstride.conversion.record import Conversion, parts_record
from diffstride.conversion.report_table import Report, ReportRow
from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.graph.example_inputs import (
    as_inputs,
    have_same_sizes,
)
from diffstride.spectral.axis_plan import Axis
from diffstride.strides import stride_layers


def report(model: nn.Module, example: Any = None) -> Report:
    """The pooling layers of a network with their strides, map sizes and multiply-adds (MACs).

    Printed, it is a table. Its columns are the module, the current and the old strides ("pinned"
    where the map has one length whatever comes in, since a layer behind it needs that), where the
    pooling is (before or after the module, or on top of its old stride), the size of the map before
    and after pooling, and the multiply-adds of one sample, of the module with its pooling, now and
    before conversion. Modules that share a layer follow each other; the first has the strides. The
    lines below are the cost of the whole network, its costliest module, and the modules left out,
    with the reason. If the cost is unknown, the table says why. A network without such layers is
    listed by module instead, with the share of each in the cost.

    Args:
        model: any network: converted, trained since, frozen, with layers of its own, or plain.
        example: as for `convert`. A converted network has that of its conversion.

    Returns:
        The report; iterating over it yields a `ReportRow` for each module.

    Raises:
        ValueError: if there is neither an example nor a conversion, or the cost cannot be told for
            an example that is given (`MultiplyAdds`).

    >>> import torch
    >>> from diffstride import convert
    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 2, stride=2))
    >>> converted = report(convert(net, torch.zeros(1, 8, 32, 32)))
    >>> print(converted)
    module         strides      was    pooled  map                  MACs  before
    0              2.00 x 2.00  2 x 2  before  32 x 32 -> 16 x 16  344 k   147 k
    whole network                                                  360 k   164 k
    costliest module: 0 (344 k, 95%)
    left out:
      1: patchifying convolution: its patches do not overlap (patchify=True takes it)
    >>> [(row.module, row.strides, row.multiply_adds) for row in converted]
    [('0', (2.0, 2.0), 344064)]
    >>> print(report(net, torch.zeros(1, 8, 32, 32)))
    module          MACs  share
    0              147 k    90%
    1             16.4 k    10%
    whole network  164 k
    costliest module: 0 (147 k, 90%)
    """
    check_network(model)
    model = uncompiled(model)
    conversion: Any = vars(model).get("conversion")
    whole = isinstance(conversion, Conversion)
    if not whole:
        conversion = parts_record(model)
    inputs = _example_of(model, conversion) if example is None else example
    if whole and not have_same_sizes(as_inputs(model, inputs), conversion.example):
        # Of another size, the cost before is not known.
        conversion = replace(conversion, multiply_adds={})
    try:
        cost, unknown = MultiplyAdds(model, inputs), ""
    except ValueError as error:
        if example is not None:
            raise
        cost, unknown = None, str(error)
    costs = cost.by_module() if cost else None
    return Report(
        rows=tuple(_rows(model, conversion, costs, cost.all_maps() if cost else {})),
        multiply_adds=cost and cost.value(),
        multiply_adds_before=conversion.multiply_adds.get(""),
        by_module=_with_outer_modules(model, costs or {}),
        costliest=_costliest(model, costs or {}),
        left_out=conversion.left_out,
        mirrors=conversion.mirrors,
        unknown=unknown,
    )


def _example_of(model: nn.Module, conversion: Conversion) -> Any:
    if conversion.example is not None:
        return conversion.example
    inner = vars(getattr(model, "module", model)).get("conversion")
    advice = "pass model.module" if isinstance(inner, Conversion) else "pass one: report(model, x)"
    raise ValueError(
        f"report needs an example input of this {type(model).__name__}, which convert has not "
        f"returned: {advice}"
    )


def _rows(
    model: nn.Module,
    conversion: Conversion,
    costs: Mapping[str, int] | None,
    maps: Mapping[str, Sequence[Axis]],
) -> list[ReportRow]:
    """The rows, with the costs and maps of the network; without costs these are not known."""
    names: dict[nn.Module, list[str]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in conversion.strides:
        module = modules.get(name)
        for layer_name in module.layer_names if isinstance(module, Pooled) else ():
            names.setdefault(getattr(module, layer_name), []).append(name)
    rows: list[ReportRow] = []
    counted: set[str] = set()  # modules whose own cost a row has
    for layer_name, layer in _pooling_layers(model).items():
        axes = maps.get(layer_name, ())
        # The first of the modules that share the layer has the cost of all its pooling.
        pooling, shared = (costs or {}).get(layer_name, 0), False
        for name in names.get(layer, [layer_name]):
            first = name not in counted
            counted.add(name)
            own = (costs or {}).get(name, 0) if first and name != layer_name else 0
            rows.append(
                ReportRow(
                    module=name,
                    strides=layer.stride_values(),
                    old_strides=conversion.strides.get(name, ()),
                    placement=conversion.placements.get(name, ""),
                    shared=shared,
                    pinned=_pinned_axes(layer),
                    map_size=() if shared else tuple(axis.size for axis in axes),
                    pooled_size=() if shared else tuple(axis.output_size for axis in axes),
                    multiply_adds=None if costs is None else pooling + own,
                    multiply_adds_before=conversion.multiply_adds.get(name) if first else None,
                )
            )
            pooling, shared = 0, True
    return rows


def _pooling_layers(model: nn.Module) -> dict[str, Any]:
    """The layers whose strides learn, pinned ones and frozen ones, each once, by name."""
    learning = stride_layers(model).values()
    return {
        name: layer
        for name, layer in model.named_modules()
        if layer in learning or getattr(layer, "fixes_size", False)
    }


def _pinned_axes(layer: Any) -> tuple[int, ...]:
    """The axes of one length; those of a frozen layer have one for each size it knows."""
    sizes = getattr(layer, "fixed_size", None) or ()
    return tuple(i for i, size in enumerate(sizes) if size is not None)


def _costliest(model: nn.Module, costs: dict[str, int]) -> str:
    """The module that costs most, with its pooling layer."""
    sums: dict[str, int] = {}
    for name, cost in costs.items():
        outer = name.rpartition(".")[0]
        if isinstance(model.get_submodule(outer), Pooled):
            name = outer
        sums[name] = sums.get(name, 0) + cost
    return max(sums, key=sums.__getitem__, default="")


def _with_outer_modules(model: nn.Module, costs: dict[str, int]) -> dict[str, int]:
    """The cost of each module, those of the modules inside included, in the model's order."""
    sums: dict[str, int] = {}
    for name, cost in costs.items():
        while name:
            sums[name] = sums.get(name, 0) + cost
            name = name.rpartition(".")[0]
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    return {name: sums[name] for name in names if sums.get(name)}
