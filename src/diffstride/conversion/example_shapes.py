"""Example inputs as JSON: the shapes and types of their tensors, and other values as they are."""

from typing import Any

import torch
from torch import Tensor

SEQUENCES: dict[str, Any] = {"tuple": tuple, "list": list}
VALUES = (str, int, float, bool, type(None))


def describe_example(example: Any) -> Any:
    """The example as JSON.

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
