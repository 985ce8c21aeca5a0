"""The matrix products behind the pooling, forward and backward, and what they cost."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffstride._torch_compat import in_forward_mode
from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.axis_product import (
    counted_products,
    inner,
    pool_axis,
    replace,
    spread_axis,
)
from diffstride.spectral.memory_format import (
    FIRST_DIM,
    Layout,
    full_precision,
    is_wrapped,
    layout_of,
)

# On a CPU a large batch is pooled in blocks of about this many bytes of input: what lies between
# two products stays in the cache, in memory that the allocator has at hand. Fresh pages for whole
# maps cost more than the arithmetic.
BLOCK_BYTES = 1 << 21


def pool(x: Tensor, axes: tuple[Axis, ...], strides: Tensor | None = None) -> Tensor:
    """Pool the last axes of ``x`` as planned; ``strides``, one per axis, receive a gradient."""
    differentiating = torch.is_grad_enabled()
    with full_precision(x):
        if strides is not None and not is_constant(strides):
            refuse_tangents(strides, x)
            return SpectralPool.apply(x, strides.expand(len(axes)), axes)[0]
        layout = layout_of(x, len(axes))
        if not (x.requires_grad and differentiating) and is_plain(x):
            return layout.leave(pool_blocks(layout.enter(x), axes, layout)[0])
        # Nothing but constants multiplies x: plain operations, so that whatever transforms or
        # exports programs (vmap, double backward, torch.export) sees nothing special.
        return layout.leave(pool_block(layout.enter(x).to(layout.compute_dtype), axes, layout))


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
        dense, on_ramp = pool_blocks(layout.enter(x), axes, layout, learning=True)
        y = layout.leave(dense)
        # A function's output that is a view may not be changed in place, as an in-place ReLU
        # behind the layer does. Detached it is none; in a transform there is nothing to detach.
        return (y if is_transformed(y) else y.data), *on_ramp

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, strides, ctx.axes = inputs
        ctx.layout = layout_of(x, len(ctx.axes))
        ctx.strides_dtype = strides.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if grads[0] is None:
            return None, None, None
        spread = SpectralSpread.apply if torch.is_grad_enabled() else SpectralSpread.forward
        with full_precision(grads[0]):
            grad_x, grad_strides = spread(grads[0], ctx.axes, ctx.layout, *ctx.saved_tensors)
        return grad_x, grad_strides.to(ctx.strides_dtype), None


class SpectralSpread(torch.autograd.Function):
    """The gradients of `SpectralPool`, which have no derivatives of their own, and say so.

    torch's ``once_differentiable`` would do, but inside `torch.func` it returns zeros.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, axes: tuple[Axis, ...], layout: Layout, *on_ramp: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad_x, products = spread_blocks(layout.enter(grad), axes, layout, on_ramp)
        grad_strides = [axis.slope * p for axis, p in zip(axes, products, strict=True)]
        return layout.leave(grad_x), torch.stack(grad_strides)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "learned strides have first derivatives alone: for second ones (a gradient penalty, a "
            "Hessian, meta-learning) fix them, with trainable=False or "
            "strides.requires_grad_(False)"
        )


def pool_blocks(
    x: Tensor, axes: Sequence[Axis], layout: Layout, learning: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The pooled map and, while learning, the bins on each axis's ramp, in pooling order."""
    blocks = list(block_slices(x, layout))
    if len(blocks) < 2:
        on_ramp: list[Tensor] = [x] * len(axes) if learning else []
        y = pool_block(x.to(layout.compute_dtype), axes, layout, on_ramp)
        return y.to(x.dtype), on_ramp
    shape, on_ramp = list(x.shape), []
    for i in axis_order(axes):
        if learning:
            ramp_shape = replace(shape, FIRST_DIM + i, 2 * len(axes[i].ramp))
            on_ramp.append(x.new_empty(ramp_shape, dtype=layout.compute_dtype))
        shape[FIRST_DIM + i] = axes[i].output_size
    y = x.new_empty(shape)
    for block in blocks:
        dense = x[block].to(layout.compute_dtype)
        pool_block(dense, axes, layout, [kept[block] for kept in on_ramp], y[block])
    return y, on_ramp


def pool_block(
    x: Tensor,
    axes: Sequence[Axis],
    layout: Layout,
    on_ramp: list[Tensor] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One axis after the other; ``on_ramp`` is filled, in place where ``out`` is."""
    order = axis_order(axes)
    for j, i in enumerate(order):
        kept = on_ramp[j] if on_ramp and out is not None else None
        last = out if i == order[-1] else None
        x, bins = pool_axis(axes[i], x, FIRST_DIM + i, last, bool(on_ramp), kept)
        if on_ramp and bins is not None:
            on_ramp[j] = bins
    return x


def spread_blocks(
    grad_y: Tensor, axes: Sequence[Axis], layout: Layout, on_ramp: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """``A^T grad_y`` and, per axis, ``<U_r^T grad_y, D_r^T x>``."""
    blocks = list(block_slices(grad_y, layout))
    if len(blocks) < 2:
        grad_x, products = spread_block(grad_y.to(layout.compute_dtype), axes, layout, on_ramp)
        return grad_x.to(grad_y.dtype), products
    shape = list(grad_y.shape)
    shape[FIRST_DIM : FIRST_DIM + len(axes)] = [axis.size for axis in axes]
    grad_x, totals = grad_y.new_empty(shape), [grad_y] * 0
    for block in blocks:
        dense = grad_y[block].to(layout.compute_dtype)
        kept = [part[block] for part in on_ramp]
        products = spread_block(dense, axes, layout, kept, grad_x[block])[1]
        totals = [a + b for a, b in zip(totals, products, strict=True)] if totals else products
    return grad_x, totals


def spread_block(
    grad: Tensor,
    axes: Sequence[Axis],
    layout: Layout,
    on_ramp: Sequence[Tensor],
    out: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The adjoint of `pool_block`: the products in reverse order, with the gradients' bins."""
    order = axis_order(axes)
    products = [grad] * len(axes)
    for j, i in reversed(list(enumerate(order))):
        last = out if i == order[0] else None
        grad, ramp_grad = spread_axis(axes[i], grad, FIRST_DIM + i, last)
        products[i] = inner(ramp_grad, on_ramp[j])
    return grad, products


def axis_order(axes: Sequence[Axis]) -> list[int]:
    """The order in which the axes are pooled: the one that shrinks the data fastest first."""
    return sorted(range(len(axes)), key=lambda i: axes[i].output_size / axes[i].size)


def multiply_adds(axes: Sequence[Axis]) -> int:
    """Multiply-adds of pooling one channel of one sample, in evaluation.

    >>> from diffstride.spectral import plan_axis
    >>> multiply_adds([plan_axis(32, 2.0), plan_axis(32, 2.0)]) == 24 * 32 * 32 + 24 * 24 * 32
    True
    """
    size, total = math.prod(axis.size for axis in axes), 0
    for i in axis_order(axes):
        total += counted_products(axes[i]) * size * axes[i].output_size
        size = size // axes[i].size * axes[i].output_size
    return total


def block_slices(x: Tensor, layout: Layout) -> Iterator[slice]:
    """Slices of the first dimension, each of about `BLOCK_BYTES`; one slice off the CPU."""
    length = x.shape[0]
    if not is_plain(x):
        yield slice(None)  # a range would make a constant of a batch that may be of any length
    elif length:
        sample = x.numel() // length * layout.compute_dtype.itemsize
        step = block_length(length, max(1, BLOCK_BYTES // max(1, sample)))
        for start in range(0, length, step):
            yield slice(start, start + step)


def block_length(length: int, longest: int) -> int:
    """The length of blocks of at most ``longest`` samples, if possible all of one length.

    oneDNN compiles and keeps a kernel, of up to a megabyte, for every shape it multiplies: a last
    block of another length would double their number.

    >>> block_length(128, 50), block_length(128, 200), block_length(13, 5)
    (32, 128, 5)
    """
    if longest >= length:
        return length
    equal = next(step for step in range(longest, 0, -1) if length % step == 0)
    return equal if 2 * equal > longest else longest


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary CPU tensor, which may be written in place block by block."""
    ordinary = x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)
    return ordinary and not is_transformed(x) and not has_tangent(x)


def is_constant(strides: Tensor) -> bool:
    """Whether nothing asks for a derivative by the strides."""
    learning = strides.requires_grad and torch.is_grad_enabled()
    return not (learning or has_tangent(strides))


def refuse_tangents(*tensors: Tensor) -> None:
    """Learned strides have derivatives backward alone."""
    if any(map(has_tangent, tensors)):
        raise NotImplementedError(
            "learned strides have no forward-mode derivatives (jvp, jacfwd, dual numbers): use "
            "reverse mode (backward, grad, vjp, jacrev), or fix them, with trainable=False or "
            "strides.requires_grad_(False)"
        )


def has_tangent(x: Tensor) -> bool:
    """Whether ``x`` carries a derivative forward: a dual number of `torch.autograd.forward_ad`."""
    if torch.compiler.is_compiling() or not in_forward_mode():
        return False
    return forward_ad.unpack_dual(x).tangent is not None


def is_transformed(x: Tensor) -> bool:
    """Whether ``x`` stands for other tensors, in a program being compiled or in `torch.func`."""
    return torch.compiler.is_compiling() or is_wrapped(x)
