"""What a conversion did, and what it costs, as a table."""

from collections.abc import Sequence

from torch import nn

from diffstride._torch_compat import uncompiled
from diffstride.conversion.converter import Conversion
from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.strides import stride_layers

UNKNOWN = "?"
HEADINGS = ("place", "strides", "was", "map", "multiply-adds", "before")


def report(model: nn.Module) -> str:
    """A table of the places that `convert` gave a learnable stride.

    Places that share their strides stand together, the first with the strides. For each place: the
    stride it had, the map that comes in and the one that goes out, and the multiply-adds of one
    sample, now and before, of the module with its pooling; in the end those of the whole network
    and what was left out, with the reason. Where the cost of the network does not follow from the
    sizes of its maps, the table says so, and lacks them.

    Args:
        model: a network from `convert`; it may have been trained since.

    Raises:
        ValueError: if the model does not come from `convert`, or has been frozen.

    >>> import torch
    >>> from diffstride import convert
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 2, stride=2))
    >>> print(report(convert(net, torch.zeros(1, 3, 32, 32))))
    place          strides     was    map                 multiply-adds   before
    0              2.00 x 2.00 2 x 2  32 x 32 -> 16 x 16         417,792    55,296
    whole network                                                434,176    71,680
    left out:
      1: patchifying convolution: its patches do not overlap (patchify=True takes it)
    """
    model = uncompiled(model)  # the network inside one that is compiled
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
            "given to freeze"
        )
    try:
        cost, unknown = MultiplyAdds(model, conversion.example), []
    except ValueError as error:
        cost, unknown = None, [f"multiply-adds: {error}"]
    rows = [HEADINGS, *_rows(model, conversion, cost)]
    before, now = conversion.multiply_adds[""], f"{cost.value():,}" if cost else UNKNOWN
    rows.append(("whole network", "", "", "", now, f"{before:,}"))
    lines = _aligned(rows) + unknown
    if conversion.left_out:
        lines.append("left out:")
        lines += [f"  {name}: {reason}" for name, reason in conversion.left_out.items()]
    return "\n".join(lines)


def _rows(
    model: nn.Module, conversion: Conversion, cost: MultiplyAdds | None
) -> list[tuple[str, ...]]:
    costs, maps = (cost.by_module(), cost.maps()) if cost else ({}, {})
    places: dict[nn.Module, list[str]] = {}
    for name in conversion.strides:
        places.setdefault(model.get_submodule(name).pooling, []).append(name)  # type: ignore
    rows = []
    for layer_name, layer in stride_layers(model).items():
        strides = " x ".join(f"{stride:.2f}" for stride in layer.stride_values())  # type: ignore
        axes = maps.get(layer_name, ())
        sizes = [_times([a.size for a in axes]), _times([a.output_size for a in axes])]
        size = " -> ".join(sizes) if axes else UNKNOWN
        # The pooling of all places is counted where they share it first.
        pooling = costs.get(layer_name, 0)
        for place in places.get(layer, [layer_name]):
            was = _times(conversion.strides.get(place, ()))
            now = pooling + (costs.get(place, 0) if place != layer_name else 0)
            before = conversion.multiply_adds.get(place, 0)
            shown = f"{now:,}" if cost else UNKNOWN
            rows.append((place, strides, was, size, shown, f"{before:,}"))
            strides, size, pooling = "  same", "", 0
    return rows


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts, numbers = row[:-2], row[-2:]
        cells = [text.ljust(width) for text, width in zip(texts, widths, strict=False)]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[-2:], strict=True)]
        lines.append("  ".join(cells))
    return lines
