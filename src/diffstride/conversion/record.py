"""The record of a conversion that a network carries: what was converted, and the cost before."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffstride._torch_compat import tree_map_only
from diffstride.graph.leaf_modules import Leaf, LeafModulesRecord
from diffstride.graph.tracer import Trace


@dataclass(frozen=True)
class ConversionStep:
    """One call of `convert`, as `diffstride.recipe` repeats it.

    Attributes:
        example: the example on the meta device: shapes without data.
        options: the other arguments, without ``filter_fn``.
        modules: the modules that were converted.
        training: whether the network was in training mode; None in files of older versions.
    """

    example: Any
    options: dict[str, Any]
    modules: tuple[str, ...]
    training: bool | None = None


@dataclass
class Conversion(LeafModulesRecord):
    """Record of what `convert` did, stored as ``model.conversion`` for `report`.

    Attributes:
        example: the example on the meta device: shapes without data.
        leaf_modules: as given.
        strides: the old stride of each converted module.
        placements: where each converted module is pooled, ``"before"`` or ``"after"`` it, or
            ``"on top"`` of its old stride.
        only_after: why each converted module cannot be pooled before, empty if it can.
        mirrors: for each module that enlarges maps, the strided modules to the size of whose input
            it brings them, one for each call.
        left_out: the reason for each module that strides and was not converted.
        multiply_adds: cost of one sample before conversion, in total (``""``) and by module.
        steps: the calls of `convert`, in order.
    """

    example: Any
    leaf_modules: tuple[Leaf, ...] = ()
    strides: dict[str, tuple[int, ...]] = field(default_factory=dict)
    placements: dict[str, str] = field(default_factory=dict)
    only_after: dict[str, str] = field(default_factory=dict)
    mirrors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)
    steps: list[ConversionStep] = field(default_factory=list)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"only_after": {}} | state)  # files of version 0.2 have none


def record_costs(traced: Trace, example: Any, leaf_modules: tuple[Leaf, ...]) -> Conversion:
    """A record with the cost before conversion, also of parts that were converted before."""
    parts = _converted_parts(traced.model)
    conversion = Conversion(
        without_data(example), leaf_modules, multiply_adds=_costs(traced, parts)
    )
    for prefix, part in parts.items():
        conversion.multiply_adds[""] += part.multiply_adds[""]
        _add_part(conversion, prefix, part)
    return conversion


def parts_record(model: nn.Module) -> Conversion:
    """The records of all converted parts of a network in one, without an example and a total."""
    conversion = Conversion(None)
    for prefix, part in _converted_parts(model).items():
        _add_part(conversion, prefix, part)
        conversion.left_out |= {f"{prefix}.{name}": why for name, why in part.left_out.items()}
    return conversion


def _add_part(conversion: Conversion, prefix: str, part: Conversion) -> None:
    """Add what was recorded of a part, by the names that its modules have in the whole."""
    for name, cost in part.multiply_adds.items():
        conversion.multiply_adds[f"{prefix}.{name}".rstrip(".")] = cost
    conversion.strides |= {f"{prefix}.{name}": old for name, old in part.strides.items()}
    conversion.placements |= {f"{prefix}.{name}": at for name, at in part.placements.items()}
    conversion.only_after |= {f"{prefix}.{name}": why for name, why in part.only_after.items()}
    for name, mirrored in part.mirrors.items():
        conversion.mirrors[f"{prefix}.{name}"] = tuple(f"{prefix}.{each}" for each in mirrored)


def without_data(example: Any) -> Any:
    """The example on the meta device."""
    return tree_map_only(Tensor, lambda x: torch.empty_like(x, device="meta"), example)


def _costs(traced: Trace, parts: dict[str, Conversion]) -> dict[str, int]:
    """Multiply-adds of one sample, in total and by module, outside of ``parts``."""
    costs = Counter({"": 0})
    for node, cost in traced.multiply_adds.items():
        name = traced.module_name(node)
        if not any(f"{name}.".startswith(f"{prefix}.") for prefix in parts):
            costs[""] += cost
            if node.op == "call_module":
                costs[name] += cost
    return {name: cost // traced.batch for name, cost in costs.items()}


def records(model: nn.Module) -> dict[str, Conversion]:
    """The records of the network and its parts, by the name of the part."""
    found = {name: vars(module).get("conversion") for name, module in model.named_modules()}
    return {name: record for name, record in found.items() if isinstance(record, Conversion)}


def level(name: str) -> int:
    """How deep in a network the module of this name lies.

    >>> level(""), level("body"), level("body.0")
    (0, 1, 2)
    """
    return name.count(".") + 1 if name else 0


def _converted_parts(model: nn.Module) -> dict[str, Conversion]:
    """The records of the parts of a network that were converted before, by name.

    Only outermost parts: a record includes the parts inside.
    """
    parts: dict[str, Conversion] = {}
    for name, record in records(model).items():
        if not any(name.startswith(f"{part}.") for part in parts):
            parts[name] = record
    return parts
