"""Check the example inputs of a network, and match them to the arguments of its ``forward``."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from diffstride._torch_compat import (
    Conv,
    is_compiled,
    tree_leaves,
    tree_map_only,
)


class ExampleError(ValueError):
    """The example is wrong, not a module."""


def as_inputs(model: nn.Module, example: Any) -> tuple[Any, ...]:
    """An example as a tuple of inputs of ``model.forward``; a single input need not be in one.

    A dictionary has the inputs by name. One of other names is itself an input.

    >>> class Net(nn.Module):
    ...     def forward(self, x, scale=2.0, mask=None): ...
    >>> as_inputs(Net(), {"x": 4, "mask": 5})
    (4, 2.0, 5)
    """
    if isinstance(example, Mapping):
        parameters = inspect.signature(model.forward).parameters
        if parameters.keys() & example.keys():
            return _positional(model, parameters, example)
    return example if isinstance(example, tuple) else (example,)


def _positional(
    model: nn.Module, parameters: Mapping[str, inspect.Parameter], example: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The inputs in the order of ``forward``, with defaults between them."""
    kind = type(model).__name__
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, parameter in parameters.items() if parameter.kind in positional]
    if unknown := [name for name in example if name not in names]:
        if unknown[0] in parameters:
            raise ExampleError(
                f"{kind}.forward takes {unknown[0]!r} by keyword only, and is called by position "
                "here: wrap the network in a module that passes it on by keyword"
            )
        raise ExampleError(
            f"the example has {unknown[0]!r}, which {kind}.forward does not take: it takes "
            f"{', '.join(names)}; leave it out"
        )
    last = max(names.index(name) for name in example)
    given = {name: example.get(name, parameters[name].default) for name in names[: last + 1]}
    missing = [name for name, value in given.items() if value is inspect.Parameter.empty]
    if missing:
        raise ExampleError(f"the example has no {missing[0]!r}, which {kind}.forward needs")
    return tuple(given.values())


def have_same_sizes(one: Any, other: Any) -> bool:
    """Whether the tensors of two examples have the same shapes, apart from the batch size."""
    sizes = [
        [tuple(leaf.shape[1:]) for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
        for example in (one, other)
    ]
    return sizes[0] == sizes[1]


def check_traceable(model: nn.Module, inputs: tuple) -> None:
    """Refuse examples without a tensor or sample, and networks that cannot be traced."""
    if not has_tensor(inputs):
        got = inputs[0] if len(inputs) == 1 else inputs
        shape = getattr(got, "shape", None)
        shown = repr(got) if shape is None else f"a {type(got).__name__} of shape {tuple(shape)}"
        raise ExampleError(
            f"example must be an input of the network, a tensor or a tuple of several, but got "
            f"{shown}: pass torch.rand(1, 3, 224, 224), for instance"
        )
    if not batch_size(inputs):
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        raise ExampleError(
            f"the example has no samples, its shape is {shapes[0]}: pass one or more"
        )
    if isinstance(model, torch.jit.ScriptModule) or is_compiled(model):
        raise ValueError(
            f"this {type(model).__name__} is compiled already and cannot be traced: pass the "
            "network itself, and compile the result"
        )
    for name, module in model.named_modules():
        if is_compiled(module):
            raise ValueError(
                f"{name!r} is compiled already and cannot be traced: compile it in place, by "
                "its method compile(), or torch.compile the whole network afterwards"
            )
    check_has_shapes(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no data, so strides could have none: "
                "call model.to_empty(device=...) and load the weights first"
            )


def check_has_shapes(model: nn.Module) -> None:
    """Refuse lazy layers that no input has told their shape yet, whose buffers cannot be copied."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet: call the network on an input first")


def batch_size(inputs: tuple) -> int:
    """The number of samples: the length of the first input that has spatial axes.

    Other inputs may have no batch axis, such as one time step for all samples.

    >>> batch_size((torch.tensor(0.5), torch.zeros(10), torch.zeros(2, 3, 8, 8)))
    2
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    maps = [x for x in tensors if x.dim() > 2]
    return next((x.shape[0] for x in maps + tensors), 1)


def empty_like_weights(x: Tensor, model: nn.Module) -> Tensor:
    """A tensor with the shape of ``x`` and the dtype and device of the weights."""
    return torch.empty_like(x, **_weight_options(x, model))


def cast_to_weights(example: Any, model: nn.Module) -> tuple[Any, ...]:
    """The inputs on the device of the weights, with their dtype; as given if they have several."""
    inputs = as_inputs(model, example)
    if len(set(_dtypes(model))) != 1:
        return inputs
    return tree_map_only(Tensor, lambda x: x.to(**_weight_options(x, model)), inputs)


def _weight_options(x: Tensor, model: nn.Module) -> dict[str, Any]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next(iter(_dtypes(model)), x.dtype) if x.is_floating_point() else x.dtype
    return {"device": device, "dtype": dtype}


def _dtypes(model: nn.Module) -> list[torch.dtype]:
    # Vectors do not count: strides and norms may be float32 in a half-precision network.
    return [p.dtype for p in model.parameters() if p.is_floating_point() and p.dim() > 1]


def check_batch_axis(module: nn.Module | None, node: fx.Node, args: tuple) -> None:
    """Refuse single images, which convolutions take but whose channels would pass for a batch."""
    if isinstance(module, Conv) and args and isinstance(args[0], Tensor):
        shape, axes = tuple(args[0].shape), len(module.kernel_size)
        if len(shape) == axes + 1 and shape[0] != module.in_channels == shape[1]:
            raise ExampleError(
                f"the example needs {axes} spatial axes: {node.target} ({type(module).__name__}) "
                f"gets maps of shape {shape}, which have {axes - 1} behind batch and channels: "
                "pass one with as many as the network takes"
            )
        if len(shape) == axes + 1:
            raise ExampleError(
                f"the example needs a batch axis: {node.target} ({type(module).__name__}) gets "
                f"maps of shape {shape}; pass example[None]"
            )


def check_features(
    module: nn.Linear, node: fx.Node, args: tuple, pooling: str, pooled: Tensor
) -> None:
    """Refuse flattened maps of another size than a linear layer behind them was built for.

    Args:
        module, node, args: a call of such a layer, and its arguments.
        pooling, pooled: the last pooling layer before it, in words, and its map.
    """
    given = args[0].shape[-1:] if args and isinstance(args[0], Tensor) else ()
    if given and given[0] != module.in_features:
        size = " x ".join(map(str, pooled.shape[2:]))
        raise ExampleError(
            f"{node.target} (Linear) takes {module.in_features:,} features, but gets "
            f"{given[0]:,}, of maps that {pooling} pools to {size}. If these are flattened maps, "
            "strides change their number: put a layer of fixed size between, such as "
            "nn.AdaptiveAvgPool2d(1), and build the linear layer for it; else build it for the "
            "features that it gets"
        )


def has_tensor(value: Any) -> bool:
    """Whether a value is a tensor or contains one."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def integer_types(inputs: tuple) -> str:
    """The integer dtypes among the inputs, in words; empty if there are none.

    >>> integer_types((torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1)))
    'torch.uint8'
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    kinds = [x.dtype for x in tensors if not (x.is_floating_point() or x.is_complex())]
    return " and ".join(dict.fromkeys(map(str, kinds)))


def name_inputs(forward: Any, kind: str, inputs: tuple) -> dict[str, Any]:
    """The inputs, each under the name of its argument of ``forward``, a bound method.

    >>> def forward(x, *others, scale=1.0): ...
    >>> name_inputs(forward, "Net", (4, 5, 6))
    {'x': 4, 'others_0': 5, 'others_1': 6}
    """
    signature = inspect.signature(forward)
    try:
        bound = signature.bind(*inputs)
    except TypeError as error:
        raise ExampleError(
            f"the example holds {len(inputs)} input(s), which {kind}.forward{signature} does not "
            f"take ({error}): pass a tuple with one for each argument, or of a batch with labels "
            "the images alone, as in example[0]"
        ) from error
    names = []
    for name, value in bound.arguments.items():
        many = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        names += [f"{name}_{i}" for i in range(len(value))] if many else [name]
    return dict(zip(names, inputs, strict=True))
