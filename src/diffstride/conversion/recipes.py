"""The recipe of a converted or frozen network: how it was made of a freshly built one, as JSON.

Weights alone do not say how a network was converted. A recipe does: the calls of `convert` with
their arguments and the shapes of their examples, what they did, and the layers of `freeze`.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from diffstride._arguments import check_network
from diffstride._torch_compat import unwrapped
from diffstride._version import __version__
from diffstride.conversion.record import Conversion, ConversionStep, records
from diffstride.graph.leaf_modules import Leaf
from diffstride.pooling.frozen import FrozenPooling

FORMAT = 1
CLASS = "class "  # begins the names of classes, where names of modules may stand as well
SEQUENCES: dict[str, Any] = {"tuple": tuple, "list": list}
VALUES = (str, int, float, bool, type(None))

Recipe = dict[str, Any]


def recipe(model: nn.Module) -> Recipe:
    """What turns a freshly built network into this converted or frozen one, as `rebuild` does.

    It does not hold weights: save these beside it, as `diffstride.save` does, or keep it wherever
    a checkpoint keeps settings. It is a dictionary that `json.dumps` takes:

    - ``format``, ``version``: of the recipe, and of diffstride.
    - ``conversions``: for each call of `convert` the part of the network that was converted, its
      example's shapes, the arguments, the mode of the network, and the modules with their strides
      and places of pooling.
    - ``frozen``: for each place of a layer of `freeze` its strides and map sizes.

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
    check_network(model)
    model = unwrapped(model)
    conversions = [
        _describe_step(part, record, step)
        for part, record in records(model).items()
        for step in record.steps
    ]
    frozen = {
        name: _describe_frozen(layer)
        for name, layer in model.named_modules(remove_duplicate=False)
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


def _describe_step(part: str, record: Conversion, step: ConversionStep) -> dict[str, Any]:
    options = step.options | {"leaf_modules": [leaf_name(x) for x in step.options["leaf_modules"]]}
    return {
        "part": part,
        "example": describe_example(step.example),
        "options": {name: _as_json(value) for name, value in options.items()},
        "modules": converted_modules(record, step),
        "left_out": record.left_out,
        "training": step.training,
    }


def converted_modules(record: Conversion, step: ConversionStep) -> dict[str, Any]:
    """The old strides of the modules of a step, and where they are pooled."""
    return {
        name: {"stride": list(record.strides[name]), "pooled": record.placements[name]}
        for name in step.modules
    }


def _as_json(value: Any) -> Any:
    """An argument of `convert` as JSON has it; numbers may be NumPy's."""
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, str)) else float(value)


def leaf_name(leaf: Leaf) -> str:
    """The name of a module, or that of a class behind the word "class"."""
    return leaf if isinstance(leaf, str) else f"{CLASS}{leaf.__module__}.{leaf.__qualname__}"


def _describe_frozen(layer: FrozenPooling) -> dict[str, Any]:
    dtype = next((str(matrix.dtype) for matrix in layer.buffers()), "torch.float32")
    return {
        "strides": list(layer.frozen_strides),
        "settings": _as_json(layer.settings),
        "round_to": _as_json(layer.round_to),
        "fixed_size": layer.fixed_size and list(layer.fixed_size),
        "sizes": [list(size) for size in layer.plans],
        "dtype": dtype.removeprefix("torch."),
    }


def describe_example(example: Any) -> Any:
    """An example input as JSON: shapes and types of its tensors, and other values as they are.

    Raises:
        ValueError: if it holds what is neither a tensor, number, text, None, nor a tuple, list or
            dictionary with text as keys.

    >>> describe_example((torch.zeros(1, 3, 8, 8), 0.5))
    {'tuple': [{'tensor': [1, 3, 8, 8], 'dtype': 'float32'}, 0.5]}
    """
    if isinstance(example, Tensor):
        return {"tensor": list(example.shape), "dtype": str(example.dtype).removeprefix("torch.")}
    if type(example) in VALUES:
        return example
    for name, kind in SEQUENCES.items():
        if type(example) is kind:
            return {name: [describe_example(each) for each in example]}
    if isinstance(example, dict) and all(isinstance(key, str) for key in example):
        return {"dict": {key: describe_example(value) for key, value in example.items()}}
    raise ValueError(
        f"the example of a conversion holds a {type(example).__name__}, which JSON cannot keep: "
        "convert with an example of tensors, numbers and text, in tuples, lists or dictionaries"
    )


def example_from(description: Any) -> Any:
    """An example of these shapes, of zeros.

    >>> x, scale = example_from(describe_example((torch.ones(1, 3, 8, 8), 0.5)))
    >>> x.shape, scale
    (torch.Size([1, 3, 8, 8]), 0.5)
    """
    if not isinstance(description, dict):
        return description
    if "tensor" in description:
        return torch.zeros(description["tensor"], dtype=getattr(torch, description["dtype"]))
    if "dict" in description:
        return {key: example_from(value) for key, value in description["dict"].items()}
    name, values = next(iter(description.items()))
    return SEQUENCES[name](map(example_from, values))


def keep_in_config(model: nn.Module) -> None:
    """Write the recipe into the configuration of a Hugging Face model, which it is saved with."""
    config = getattr(model, "config", None)
    if callable(getattr(config, "save_pretrained", None)):
        with suppress(ValueError):  # JSON cannot keep the example
            config.diffstride = recipe(model)  # type: ignore[union-attr]
