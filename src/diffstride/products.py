"""The matrix products behind the pooling, forward and backward, and what they cost."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffstride.layout import layout_of
from diffstride.spectrum import Axis, axis_matrix, ramp_factors


def pool(x: Tensor, axes: tuple[Axis, ...], strides: Tensor | None = None) -> Tensor:
    """Pool the last axes of ``x`` as planned; ``strides``, one per axis, receive a gradient."""
    if strides is not None and strides.requires_grad and torch.is_grad_enabled():
        return SpectralPool.apply(x, strides.expand(len(axes)), axes)[0]
    # Nothing but constants multiplies x: plain operations, so that whatever transforms or
    # exports programs (vmap, double backward, torch.export) sees nothing special.
    layout = layout_of(x, len(axes))
    with _full_precision(x):
        y = layout.enter(x)
        for i in axis_order(axes):
            operator, dim = matrix(axes[i], y.dtype, y.device), layout.first_dim + i
            y = multiply(operator, y, dim, axes[i].output_size)
        return layout.leave(y)


class SpectralPool(torch.autograd.Function):
    """``y = A_1 … A_n x`` with the gradients of ``x`` and of the strides.

    Along an axis ``dA/ds = slope * U_r D_r^T`` has the rank of the few bins on the ramp, hence
    ``grad_s = slope * <U_r^T grad_y, D_r^T x>``. The forward pass keeps ``D_r^T x``, about
    ``4R/N`` of the size of ``x``, and nothing else: the rest of the layer is linear.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, strides: Tensor, axes: tuple[Axis, ...]) -> tuple[Tensor, ...]:
        layout = layout_of(x, len(axes))
        on_ramp = []
        with _full_precision(x):
            y = layout.enter(x)
            for i in axis_order(axes):
                dim, kind = layout.first_dim + i, (y.dtype, y.device)
                on_ramp.append(multiply(analysis(axes[i], *kind), y, dim, 2 * len(axes[i].ramp)))
                y = multiply(matrix(axes[i], *kind), y, dim, axes[i].output_size)
        return layout.leave(y), *on_ramp

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, strides, ctx.axes = inputs
        ctx.layout = layout_of(x, len(ctx.axes))
        ctx.strides_dtype = strides.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if grads[0] is None:
            return None, None, None
        on_ramp = list(ctx.saved_tensors)
        grad_strides: list[Tensor] = [grads[0]] * len(ctx.axes)
        with _full_precision(grads[0]):
            grad = ctx.layout.enter(grads[0])
            for i in reversed(axis_order(ctx.axes)):
                axis, dim, kind = ctx.axes[i], ctx.layout.first_dim + i, (grad.dtype, grad.device)
                ramp_grad = multiply(synthesis(axis, *kind), grad, dim, 2 * len(axis.ramp))
                grad_strides[i] = axis.slope * inner(ramp_grad, on_ramp.pop())
                grad = multiply(matrix(axis, *kind).T, grad, dim, axis.size)
            grad_x = ctx.layout.leave(grad) if ctx.needs_input_grad[0] else None
        return grad_x, torch.stack(grad_strides).to(ctx.strides_dtype), None


def axis_order(axes: Sequence[Axis]) -> list[int]:
    """The order in which the axes are pooled: the one that shrinks the data fastest first."""
    return sorted(range(len(axes)), key=lambda i: axes[i].output_size / axes[i].size)


def multiply_adds(axes: Sequence[Axis]) -> int:
    """Multiply-adds of pooling one channel of one sample, in evaluation.

    >>> from diffstride.spectrum import plan_axis
    >>> multiply_adds([plan_axis(32, 2.0), plan_axis(32, 2.0)]) == 24 * 32 * 32 + 24 * 24 * 32
    True
    """
    size, total = math.prod(axis.size for axis in axes), 0
    for i in axis_order(axes):
        total += size * axes[i].output_size
        size = size // axes[i].size * axes[i].output_size
    return total


def multiply(matrix: Tensor, x: Tensor, dim: int, length: int) -> Tensor:
    """``matrix``, of ``length`` rows, times ``x`` along one dimension, as few large products."""
    shape = x.shape
    leading, trailing = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    if trailing == 1:
        y = x.reshape(leading, shape[dim]) @ matrix.T
    else:
        batch = x.reshape(leading, shape[dim], trailing)
        y = torch.bmm(matrix.expand(leading, length, shape[dim]), batch)
    return y.reshape(*shape[:dim], length, *shape[dim + 1 :])


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of ``a * b``, accumulated in float32 or better."""
    if a.dtype in (torch.float32, torch.float64):
        return torch.dot(a.reshape(-1), b.reshape(-1))
    return (a.float() * b.float()).sum()


# The matrices below are functions of a few numbers. Small caches hold those in use: in training
# the last step's, in evaluation those of every layer, so that nothing is computed twice.


def matrix(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of one axis where ``x`` is, formed in float64 and rounded once."""
    return _constant_matrix(*tuple(axis), dtype, device)


@torch.compiler.assume_constant_result
def _constant_matrix(*args: Any) -> Tensor:
    # A compiled program gets the finished matrix. Its tracer hands over plain numbers only,
    # and would look through the cache if it saw one.
    return _cached_matrix(*args)


@lru_cache(maxsize=256)
def _cached_matrix(*args: Any) -> Tensor:
    *fields, dtype, device = args
    return axis_matrix(Axis(*fields)).to(device, dtype)


@lru_cache(maxsize=256)
def analysis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``D_r^T`` of one axis where ``x`` is."""
    return ramp_factors(axis)[1].T.to(device, dtype).contiguous()


@lru_cache(maxsize=256)
def synthesis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``U_r^T`` of one axis where ``grad_y`` is."""
    return ramp_factors(axis)[0].T.to(device, dtype).contiguous()


def _full_precision(x: Tensor) -> AbstractContextManager:
    # Like every pooling of PyTorch the layer keeps the dtype of its input: under autocast the
    # products would silently turn float32 into half precision.
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
