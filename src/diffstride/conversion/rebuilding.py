"""Rebuild a converted or frozen network by its recipe."""

from typing import Any

import torch
from torch import nn

from diffstride._arguments import check_network
from diffstride.conversion.converter import convert
from diffstride.conversion.network_copies import Model, deep_copy, replace_modules
from diffstride.conversion.recipes import (
    CLASS,
    FORMAT,
    Recipe,
    converted_modules,
    example_from,
    leaf_name,
)
from diffstride.conversion.record import level, records
from diffstride.graph.leaf_modules import Leaf
from diffstride.graph.restoring import set_modes
from diffstride.pooling.frozen import FrozenPooling, is_frozen
from diffstride.spectral.axis_plan import WindowSettings

DIFFERS = "the network differs from the one that was converted"
ADVICE = "build it by the same code and versions"


@torch.inference_mode(mode=False)  # inference tensors could not be trained afterwards
def rebuild(model: Model, recipe: Recipe) -> Model:
    """Convert or freeze a freshly built network as another one was, by its `recipe`.

    Its weights and strides are not those of the other: load its ``state_dict`` afterwards. The
    given model is not changed.

    Args:
        model: a network built by the code that built the other one.
        recipe: from `recipe`; it may have been through JSON.

    Returns:
        A copy, converted or frozen, in the mode of the model.

    Raises:
        ValueError: if the recipe is none, malformed, or of a newer format; if the network is
            converted already, or differs from the one that was converted.

    >>> from diffstride import convert, recipe
    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1))
    >>> again = rebuild(net, recipe(convert(net, torch.zeros(1, 8, 32, 32))))
    >>> type(again[0]).__name__
    'PooledConv2d'
    """
    check_network(model)
    try:
        return _rebuild(model, recipe)
    except (KeyError, TypeError, AttributeError) as error:  # of entries that are missing or wrong
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise ValueError(
            f"the recipe {what}: pass one as diffstride.recipe returned it, or the dictionary that "
            "json.loads makes of its JSON"
        ) from error


def _rebuild(model: Model, recipe: Recipe) -> Model:
    _check(model, recipe)
    root = nn.Sequential(deep_copy(model))  # so that the network has a parent, too
    modes = {name: module.training for name, module in root.named_modules()}
    # Parts first: they were converted before the networks that contain them.
    for step in sorted(recipe["conversions"], key=lambda step: level(step["part"]), reverse=True):
        part = _submodule(root, step["part"])
        replace_modules(root, {part: _convert_again(part, step)})
    frozen: dict[nn.Module, FrozenPooling] = {}
    for name, description in recipe["frozen"].items():
        layer = _submodule(root, name)
        frozen[layer] = frozen.get(layer) or _frozen_again(description)
        # Only here: a part may be frozen while another one keeps the layer that they shared.
        parent, _, child = f"0.{name}".rstrip(".").rpartition(".")
        setattr(root.get_submodule(parent), child, frozen[layer])
    set_modes({each: modes.get(name, model.training) for name, each in root.named_modules()})
    return root[0]  # type: ignore[return-value]


def _submodule(root: nn.Module, name: str) -> nn.Module:
    """The part of this name of the network in ``root``."""
    try:
        return root.get_submodule(f"0.{name}".rstrip("."))
    except AttributeError as error:
        raise ValueError(f"{DIFFERS} (it has no {name!r}): {ADVICE}") from error


def _leaf(name: str, model: nn.Module) -> Leaf | None:
    """The name of a module, or the class of this name; None if no module of ``model`` is one."""
    if not name.startswith(CLASS):
        return name
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    return next((cls for cls in classes if leaf_name(cls) == name), None)


def _check(model: nn.Module, recipe: Recipe) -> None:
    if not isinstance(recipe, dict) or not {"format", "conversions", "frozen"} <= recipe.keys():
        raise ValueError(f"expected a recipe from diffstride.recipe, but got {str(recipe)[:80]!r}")
    if recipe["format"] > FORMAT:
        raise ValueError(
            f"the recipe has format {recipe['format']}, of diffstride {recipe.get('version')}, and "
            f"this version reads formats up to {FORMAT}: install that version or a newer one"
        )
    if records(model) or is_frozen(model):
        raise ValueError(
            f"this {type(model).__name__} is converted or frozen already: pass one that was built "
            "anew, as before its conversion"
        )


def _convert_again(model: nn.Module, step: dict[str, Any]) -> nn.Module:
    """Convert the same modules as a step of a recipe did, in the mode of then."""
    if step.get("training") is not None:
        model.train(step["training"])
    wanted: dict[str, Any] = step["modules"]
    options = step["options"]
    leaves = [leaf for name in options["leaf_modules"] if (leaf := _leaf(name, model))]
    try:
        converted = convert(
            model,
            example_from(step["example"]),
            filter_fn=lambda module, name: name in wanted,
            **options | {"leaf_modules": leaves},
        )
    except ValueError as error:
        known = dict(model.named_modules())
        missing = ", ".join(repr(name) for name in wanted if name not in known)
        # The user of `load` has passed no filter.
        why = str(error).replace("left out by filter_fn", "not converted in the other")
        why = f"it has no {missing}; {why}" if missing else why
        raise ValueError(f"{DIFFERS} ({why}): {ADVICE}") from error
    record: Any = converted.conversion
    made = converted_modules(record, record.steps[-1])
    for name in wanted:
        if made.get(name) != wanted[name]:
            what = f"{name!r} has {made.get(name)}, not {wanted[name]}"
            raise ValueError(f"{DIFFERS} ({what}): {ADVICE}")
    record.left_out = dict(step["left_out"])
    return converted


def _frozen_again(description: dict[str, Any]) -> FrozenPooling:
    layer = FrozenPooling(
        description["strides"],
        WindowSettings(*description["settings"]),
        description["round_to"],
        description["fixed_size"] and tuple(description["fixed_size"]),
    )
    for size in description["sizes"]:
        layer.add_size(size, getattr(torch, description["dtype"]))
    return layer
