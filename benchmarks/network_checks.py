"""What tests and the sweep ask of converted networks: gradients, costs, and strides that move."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log2, prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffstride.conversion.module_strides import stride_of
from diffstride.conversion.pooled_module import Pooled
from diffstride.graph.example_inputs import batch_size
from diffstride.spectral import axis_product
from diffstride.strides import stride_layers


def outputs_of(output: object) -> list[Tensor]:
    """All tensors that a network returns, in tuples, lists and dictionaries, too."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in outputs_of(part)]
    return []


def step(model: nn.Module, *inputs: Any) -> None:
    """Forward and backward; every stride must receive a finite gradient."""
    model.zero_grad()
    losses = [
        out.square().mean()
        for out in outputs_of(model(*inputs))
        if out.requires_grad and out.is_floating_point()
    ]
    torch.stack(losses).sum().backward()
    layers: dict[str, Any] = stride_layers(model)
    for name, layer in layers.items():
        gradient = layer.strides.grad
        assert gradient is not None, f"{name} received no gradient"
        assert gradient.isfinite().all(), f"{name} received {gradient}"


def counted(model: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of one sample, counted while the model runs, to a whole number."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)  # the counter asks those for a gradient that are returned
    try:
        with torch.no_grad(), _whole_attention():
            model(*inputs)  # fills the caches of matrices: making them is not part of the cost
            with operation_counter() as counter:
                model(*inputs)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    return round(counter.get_total_flops() / 2 / batch_size(inputs))


@contextmanager
def operation_counter() -> Iterator[FlopCounterMode]:
    """Counts as torch does, and Fourier transforms and products with vectors, free for torch.

    A transform between ``n`` real samples and their bins counts ``5/4 n log2 n`` multiply-adds.
    Signals are transformed wherever that costs less, as they count, even where products are faster.
    """
    aten = torch.ops.aten
    counts: dict[Any, Any] = {aten._fft_r2c: _analysis_count, aten._fft_c2r: _synthesis_count}
    counts |= dict.fromkeys((aten.mv, aten.dot, aten.vdot), _vector_count)
    always = patch.object(axis_product, "are_fast", lambda *_: True)
    with always, FlopCounterMode(display=False, custom_mapping=counts) as counter:
        yield counter


def _analysis_count(shape: Sequence[int], dims: Sequence[int], *_: Any, **__: Any) -> float:
    (dim,) = dims
    return prod(shape) * 2.5 * log2(shape[dim])


def _synthesis_count(
    shape: Sequence[int], dims: Sequence[int], norm: int, size: int, **_: Any
) -> float:
    (dim,) = dims
    return prod(shape) / shape[dim] * size * 2.5 * log2(size)


def _vector_count(first: Sequence[int], vector: Sequence[int], **_: Any) -> int:
    """Of a matrix or a vector, and a vector."""
    return 2 * prod(first)


@contextmanager
def _whole_attention() -> Iterator[None]:
    """A context in which attention runs as products, which torch counts, and not fused."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def move_strides(model: nn.Module, seed: int = 0, low: float = 1.0, high: float = 2.4) -> None:
    """Set all strides to random numbers, smaller ones where a module still strides by 2."""
    numbers = random.Random(seed)
    modules = [module for module in model.modules() if isinstance(module, Pooled)]
    on_top = {module.pooling for module in modules if max(stride_of(module)) > 1}
    layers: dict[str, Any] = stride_layers(model)
    for layer in layers.values():
        most = max(low, high / 2) if layer in on_top else high
        with torch.no_grad():
            layer.strides.copy_(torch.tensor([numbers.uniform(low, most) for _ in layer.strides]))
        layer.project_()
