"""Pool the axes of a feature map one after the other, in blocks that fit the cache; their MACs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffstride._torch_compat import has_tangent, is_transformed
from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.axis_product import (
    cost_of_transforms,
    inner,
    pool_axis,
    spread_axis,
    takes_transforms,
    with_length,
)
from diffstride.spectral.memory_format import FIRST_DIM, Layout

# On a CPU a large batch is pooled in blocks of about this many bytes of input. Intermediate results
# then stay in the cache and in memory already allocated: new pages for whole maps cost more than
# the arithmetic.
BLOCK_BYTES = 1 << 21


def axis_order(axes: Sequence[Axis]) -> list[int]:
    """Indices of the axes in the pooling order that costs least by matrices.

    Of two axes, that comes first which shrinks the map more for what it costs: by ``N - M`` for
    each ``N M``. Where an axis is transformed another order may take somewhat fewer
    multiply-adds, but more time.
    """
    return sorted(range(len(axes)), key=lambda i: 1 / axes[i].size - 1 / axes[i].output_size)


def multiply_adds(
    axes: Sequence[Axis],
    sizes: Sequence[float] | None = None,
    output_sizes: Sequence[float] | None = None,
    transforms: bool = True,
) -> float:
    """Multiply-adds of pooling one channel of one sample, in evaluation.

    Each axis costs the number of samples of the map when it is pooled, times its output length
    ``M``. An axis that is transformed, see `takes_transforms`, costs ``5/4 (N log2 N + M log2 M)``
    for each line of ``N`` samples: a real Fourier transform of ``n`` samples takes about
    ``5/2 n log2 n`` additions and multiplications. An axis that keeps all its bins costs nothing.

    Args:
        axes: the plan of each axis.
        sizes, output_sizes: lengths to count with, if not those of the axes; see `SizedPooling`.
        transforms: whether axes are transformed where `takes_transforms` says so.

    >>> from diffstride.spectral import plan_axis
    >>> multiply_adds([plan_axis(32, 2.0)] * 2) == 16 * 32 * 32 + 16 * 16 * 32
    True
    >>> multiply_adds([plan_axis(2048, 2.0)]) == 1.25 * (2048 * 11 + 1024 * 10)
    True
    """
    current: list[float] = [axis.size for axis in axes] if sizes is None else list(sizes)
    outputs = [axis.output_size for axis in axes] if output_sizes is None else output_sizes
    total = 0.0
    for i in axis_order(axes):
        # Products in halves count in full. They need an even M, so counting them as half would
        # double the cost from one size to the next and mislead a budget.
        of_line = current[i] * outputs[i]
        if transforms and takes_transforms(axes[i], is_signal=len(axes) == 1):
            of_line = cost_of_transforms(current[i], outputs[i])
        if not axes[i].is_identity:
            total += math.prod(current) / current[i] * of_line
        current[i] = outputs[i]
    return total


def pool_map(
    x: Tensor, axes: Sequence[Axis], layout: Layout, learning: bool = False, in_blocks: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """``A_1 … A_n x`` and, while learning, the bins ``D_r^T x`` of each axis, in pooling order.

    ``x`` is dense, as ``layout.enter`` returns it. With ``in_blocks`` results are written in place,
    which is not possible where autograd records the products.
    """
    order = axis_order(axes)
    blocks = block_slices(x, layout) if in_blocks else [slice(None)]
    if len(blocks) == 1:
        y, on_ramp = _pool_block(x.to(layout.compute_dtype), axes, order, learning)
        copy = all(axis.is_identity for axis in axes)  # the output must not be the input
        return y.to(x.dtype, copy=copy), on_ramp
    shape, on_ramp = list(x.shape), []
    for i in order:
        if learning:
            ramp_shape = with_length(shape, FIRST_DIM + i, 2 * len(axes[i].ramp))
            on_ramp.append(x.new_empty(ramp_shape, dtype=layout.compute_dtype))
        shape[FIRST_DIM + i] = axes[i].output_size
    y = x.new_empty(shape)
    for block in blocks:
        kept = [part[block] for part in on_ramp]
        _pool_block(x[block].to(layout.compute_dtype), axes, order, learning, y[block], kept)
    return y, on_ramp


def _pool_block(
    x: Tensor,
    axes: Sequence[Axis],
    order: Sequence[int],
    learning: bool,
    out: Tensor | None = None,
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    on_ramp = []
    for j, i in enumerate(order):
        last = out if i == order[-1] else None
        x, bins = pool_axis(axes[i], x, FIRST_DIM + i, last, learning, kept[j] if kept else None)
        on_ramp += [] if bins is None else [bins]
    return x, on_ramp


def spread_map(
    grad_y: Tensor, axes: Sequence[Axis], layout: Layout, on_ramp: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The adjoint of `pool_map`: ``A^T grad_y`` and, per axis, ``<U_r^T grad_y, D_r^T x>``."""
    blocks = block_slices(grad_y, layout)
    if len(blocks) == 1:
        grad_x, products = _spread_block(grad_y.to(layout.compute_dtype), axes, on_ramp)
        return grad_x.to(grad_y.dtype), products
    shape = list(grad_y.shape)
    shape[FIRST_DIM : FIRST_DIM + len(axes)] = [axis.size for axis in axes]
    grad_x, totals = grad_y.new_empty(shape), [grad_y] * 0
    for block in blocks:
        dense = grad_y[block].to(layout.compute_dtype)
        kept = [part[block] for part in on_ramp]
        products = _spread_block(dense, axes, kept, grad_x[block])[1]
        totals = [a + b for a, b in zip(totals, products, strict=True)] if totals else products
    return grad_x, totals


def _spread_block(
    grad: Tensor, axes: Sequence[Axis], on_ramp: Sequence[Tensor], out: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    order = axis_order(axes)
    products = [grad] * len(axes)
    for j, i in reversed(list(enumerate(order))):
        last = out if i == order[0] else None
        grad, ramp_grad = spread_axis(axes[i], grad, FIRST_DIM + i, last)
        products[i] = inner(ramp_grad, on_ramp[j])
    return grad, products


def block_slices(x: Tensor, layout: Layout) -> list[slice]:
    """Slices of the first dimension, each of about `BLOCK_BYTES`; one slice off the CPU."""
    length = x.shape[0]
    is_plain = x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)
    if not is_plain or is_transformed(x) or has_tangent(x) or not length:
        return [slice(None)]  # a range would fix the batch size of an exported program
    sample = x.numel() // length * layout.compute_dtype.itemsize
    step = block_length(length, max(1, BLOCK_BYTES // max(1, sample)))
    return [slice(start, start + step) for start in range(0, length, step)]


def block_length(length: int, longest: int) -> int:
    """The length of blocks of at most ``longest`` samples, if possible all of one length.

    oneDNN compiles and keeps a kernel of up to a megabyte for every shape that it multiplies. A
    last block of another length would double their number.

    >>> block_length(128, 50), block_length(128, 200), block_length(13, 5)
    (32, 128, 5)
    """
    if longest >= length:
        return length
    equal = next(step for step in range(longest, 0, -1) if length % step == 0)
    return equal if 2 * equal > longest else longest
