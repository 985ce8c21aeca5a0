"""Recipes: what turns a freshly built network into the converted or frozen one it was saved as.

Weights alone do not say how a network was converted. A recipe does, as JSON: the calls of `convert`
with their arguments and the shapes of their examples, what they did, and the layers of `freeze`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from diffstride._torch_compat import uncompiled
from diffstride.conversion.converter import convert
from diffstride.conversion.example_shapes import describe_example, example_from
from diffstride.conversion.record import Conversion, ConversionStep
from diffstride.graph.example_inputs import Model, deep_copy
from diffstride.graph.leaf_modules import Leaf
from diffstride.pooling.frozen import FrozenPooling

FORMAT = 1
CLASS = "class "  # begins the names of classes, where names of modules may stand as well
DIFFERS = "the network differs from the one that was converted"
ADVICE = "build it by the same code and versions"

Recipe = dict[str, Any]


def recipe(model: nn.Module) -> Recipe:
    """What turns a freshly built network into this converted or frozen one, as `rebuild` does.

    It does not hold weights: save these beside it, as `diffstride.save` does, or keep it wherever
    a checkpoint keeps settings. It is a dictionary that `json.dumps` takes:

    - ``format``, ``version``: of the recipe, and of diffstride.
    - ``conversions``: for each call of `convert` the part of the network that was converted, its
      example's shapes, the arguments, and the modules with their strides and places of pooling.
    - ``frozen``: for each layer of `freeze` its strides and map sizes.

    Args:
        model: a network that `convert` or `freeze` returned, or one with such parts.

    Raises:
        ValueError: if no part of it was converted or frozen, or an example holds what is neither
            tensor, number, text nor a container of these.

    >>> from diffstride import convert
    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1))
    >>> converted = convert(net, torch.zeros(1, 8, 32, 32))
    >>> recipe(converted)["conversions"][0]["modules"]
    {'0': {'stride': [2, 2], 'pooled': 'before'}}
    """
    from diffstride import __version__

    model = uncompiled(model)
    conversions = [
        _describe_step(part, record, step)
        for part, record in _records(model)
        for step in record.steps
    ]
    frozen = {
        name: _describe_frozen(layer)
        for name, layer in model.named_modules()
        if isinstance(layer, FrozenPooling)
    }
    if not conversions and not frozen:
        raise ValueError(
            f"no part of this {type(model).__name__} was converted or frozen, so there is nothing "
            "to rebuild: save its state_dict()"
        )
    return {
        "format": FORMAT,
        "version": __version__,
        "conversions": conversions,
        "frozen": frozen,
    }


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
        ValueError: if the recipe is none, or of a newer format; if the network is converted
            already, or differs from the one that was converted.

    >>> from diffstride import convert
    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1))
    >>> again = rebuild(net, recipe(convert(net, torch.zeros(1, 8, 32, 32))))
    >>> type(again[0]).__name__
    'PooledConv2d'
    """
    _check(model, recipe)
    root = nn.Sequential(deep_copy(model))  # so that the network has a parent, too
    # Parts first: they were converted before the networks that contain them.
    for step in sorted(recipe["conversions"], key=lambda step: -len(step["part"].split("."))):
        part = _submodule(root, step["part"])
        _replace(root, {part: _convert_again(part, step)})
    layers = {_submodule(root, name): each for name, each in recipe["frozen"].items()}
    _replace(root, {layer: _frozen_again(each) for layer, each in layers.items()})
    root.train(model.training)
    return root[0]  # type: ignore[return-value]


def _submodule(root: nn.Module, name: str) -> nn.Module:
    """The part of this name of the network in ``root``."""
    try:
        return root.get_submodule(f"0.{name}".rstrip("."))
    except AttributeError as error:
        raise ValueError(f"{DIFFERS} (it has no {name!r}): {ADVICE}") from error


def _records(model: nn.Module) -> list[tuple[str, Conversion]]:
    """The records of the network and its parts, with the name of the part."""
    found = [(name, vars(module).get("conversion")) for name, module in model.named_modules()]
    return [(name, record) for name, record in found if isinstance(record, Conversion)]


def _describe_step(part: str, record: Conversion, step: ConversionStep) -> dict[str, Any]:
    options = step.options | {"leaf_modules": [_leaf_name(x) for x in step.options["leaf_modules"]]}
    return {
        "part": part,
        "example": describe_example(step.example),
        "options": {name: _as_json(value) for name, value in options.items()},
        "modules": _converted_modules(record, step),
        "left_out": step.left_out,
    }


def _converted_modules(record: Conversion, step: ConversionStep) -> dict[str, Any]:
    return {
        name: {"stride": list(record.strides[name]), "pooled": record.placements[name]}
        for name in step.modules
    }


def _as_json(value: Any) -> Any:
    """An argument of `convert` as JSON has it; numbers may be NumPy's."""
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, str)) else float(value)


def _leaf_name(leaf: Leaf) -> str:
    return leaf if isinstance(leaf, str) else f"{CLASS}{leaf.__module__}.{leaf.__qualname__}"


def _leaf(name: str, model: nn.Module) -> Leaf:
    """The name of a module, or the class of this name, of a module in ``model``."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    return next((cls for cls in classes if _leaf_name(cls) == name), name)


def _describe_frozen(layer: FrozenPooling) -> dict[str, Any]:
    dtype = next((str(matrix.dtype) for matrix in layer.buffers()), "torch.float32")
    return {
        "strides": list(layer.frozen_strides),
        "settings": list(layer.settings),
        "round_to": layer.round_to,
        "fixed_size": layer.fixed_size and list(layer.fixed_size),
        "sizes": [list(size) for size in layer.sizes],
        "dtype": dtype.removeprefix("torch."),
    }


def _check(model: nn.Module, recipe: Recipe) -> None:
    if not isinstance(recipe, dict) or not {"format", "conversions", "frozen"} <= recipe.keys():
        raise ValueError(f"expected a recipe from diffstride.recipe, but got {str(recipe)[:80]!r}")
    if recipe["format"] > FORMAT:
        raise ValueError(
            f"the recipe has format {recipe['format']}, of diffstride {recipe.get('version')}, and "
            f"this version reads formats up to {FORMAT}: install that version or a newer one"
        )
    if _records(model) or any(isinstance(each, FrozenPooling) for each in model.modules()):
        raise ValueError(
            f"this {type(model).__name__} is converted or frozen already: pass one that was built "
            "anew, as before its conversion"
        )


def _convert_again(model: nn.Module, step: dict[str, Any]) -> nn.Module:
    """Convert the same modules as a step of a recipe did."""
    wanted: dict[str, Any] = step["modules"]
    options = step["options"]
    leaves = [_leaf(name, model) for name in options["leaf_modules"]]
    try:
        converted = convert(
            model,
            example_from(step["example"]),
            filter_fn=lambda module, name: name in wanted,
            **options | {"leaf_modules": leaves},
        )
    except ValueError as error:
        raise ValueError(f"{DIFFERS} ({error}): {ADVICE}") from error
    record: Any = converted.conversion
    made = _converted_modules(record, record.steps[-1])
    for name in wanted:
        if made.get(name) != wanted[name]:
            what = f"{name!r} has {made.get(name)}, not {wanted[name]}"
            raise ValueError(f"{DIFFERS} ({what}): {ADVICE}")
    record.left_out = dict(step["left_out"])
    record.steps[-1] = replace(record.steps[-1], left_out=record.left_out)
    return converted


def _frozen_again(description: dict[str, Any]) -> FrozenPooling:
    layer = FrozenPooling(
        description["strides"],
        tuple(description["settings"]),
        description["round_to"],
        description["fixed_size"] and tuple(description["fixed_size"]),
    )
    for size in description["sizes"]:
        layer.add_size(size, getattr(torch, description["dtype"]))
    return layer


def _replace(root: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules wherever they are children."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                setattr(parent, name, new[child])
