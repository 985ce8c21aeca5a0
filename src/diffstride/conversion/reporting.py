"""Report what a conversion did, and the cost before and after it, as a table."""

from collections.abc import Container, Sequence
from typing import Any

from torch import nn

from diffstride._torch_compat import uncompiled
from diffstride.conversion.record import Conversion
from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.strides import stride_layers

UNKNOWN = "?"
HEADINGS = ("module", "strides", "was", "pooled", "map", "multiply-adds", "before")


def report(model: nn.Module) -> str:
    """A table of the modules whose strides `convert` made learnable.

    The columns are the current and the old strides ("pinned" where the map has one size whatever
    comes in, since a layer behind it needs that), where the pooling is (before or after the
    module, or on top of its old stride), the size of the map before and after pooling, and the
    multiply-adds of one sample, of the module with its pooling, now and before conversion.
    Modules that share a layer follow each other; the first has the strides. The last lines are the
    cost of the whole network and the modules left out, with the reason. If the cost is unknown, the
    table says why.

    Args:
        model: a network from `convert`; it may have been trained since.

    Raises:
        ValueError: if the model does not come from `convert`, or is frozen.

    >>> import torch
    >>> from diffstride import convert
    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 2, stride=2))
    >>> print(report(convert(net, torch.zeros(1, 8, 32, 32))))
    module         strides      was    pooled  map                 multiply-adds   before
    0              2.00 x 2.00  2 x 2  before  32 x 32 -> 16 x 16        344,064  147,456
    whole network                                                        360,448  163,840
    left out:
      1: patchifying convolution: its patches do not overlap (patchify=True takes it)
    """
    model = uncompiled(model)
    conversion = getattr(model, "conversion", None)
    if not isinstance(conversion, Conversion):
        inner = getattr(getattr(model, "module", None), "conversion", None)
        advice = ": pass model.module" if isinstance(inner, Conversion) else ""
        raise ValueError(
            f"report needs a model returned by convert, but this {type(model).__name__} is not"
            f"{advice}"
        )
    if conversion.strides and not stride_layers(model):
        raise ValueError(
            f"the strides of this {type(model).__name__} are frozen: report the network that was "
            "passed to freeze"
        )
    try:
        cost, unknown = MultiplyAdds(model, conversion.example), []
    except ValueError as error:
        cost, unknown = None, [f"multiply-adds: {error}"]
    rows = [HEADINGS, *_rows(model, conversion, cost)]
    before, now = conversion.multiply_adds[""], f"{cost.value():,}" if cost else UNKNOWN
    rows.append(("whole network", "", "", "", "", now, f"{before:,}"))
    lines = _aligned(rows) + unknown
    lines += [
        f"{name}: enlarges to the size that enters {', '.join(mirrored)}"
        for name, mirrored in conversion.mirrors.items()
    ]
    if conversion.left_out:
        lines.append("left out:")
        lines += [f"  {name}: {reason}" for name, reason in conversion.left_out.items()]
    return "\n".join(lines)


def _rows(
    model: nn.Module, conversion: Conversion, cost: MultiplyAdds | None
) -> list[tuple[str, ...]]:
    costs, maps = (cost.by_module(), cost.all_maps()) if cost else ({}, {})
    names: dict[nn.Module, list[str]] = {}
    for name in conversion.strides:
        module: Any = model.get_submodule(name)
        for layer_name in module.layer_names:
            names.setdefault(getattr(module, layer_name), []).append(name)
    rows = []
    for layer_name, layer in _pooling_layers(model, names).items():
        strides = "pinned"
        if not layer.fixes_size:
            strides = " x ".join(f"{stride:.2f}" for stride in layer.stride_values())
        axes = maps.get(layer_name, ())
        sizes = [_times([a.size for a in axes]), _times([a.output_size for a in axes])]
        size = " -> ".join(sizes) if axes else UNKNOWN
        # The first of the modules that share the layer has the cost of all its pooling.
        pooling = costs.get(layer_name, 0)
        for name in names.get(layer, [layer_name]):
            was = _times(conversion.strides.get(name, ()))
            now = pooling + (costs.get(name, 0) if name != layer_name else 0)
            before = conversion.multiply_adds.get(name, 0)
            shown = f"{now:,}" if cost else UNKNOWN
            placement = conversion.placements.get(name, "")
            rows.append((name, strides, was, placement, size, shown, f"{before:,}"))
            strides, size, pooling = "  same", "", 0
    return rows


def _pooling_layers(model: nn.Module, pinned: Container[nn.Module]) -> dict[str, Any]:
    """The layers whose strides learn, and those among ``pinned`` that keep a map's size."""
    learning = stride_layers(model).values()
    return {
        name: layer
        for name, layer in model.named_modules()
        if layer in learning or (getattr(layer, "fixes_size", False) and layer in pinned)
    }


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * (len(widths) - 2) + [str.rjust] * 2  # the last two columns are numbers
    lines = [zip(sides, row, widths, strict=True) for row in rows]
    return ["  ".join(side(text, width) for side, text, width in line) for line in lines]
