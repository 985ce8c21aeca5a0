"""Pool one axis of a dense tensor, forward and backward: by matrices or by Fourier transforms.

Up to about 300 samples one matrix product is fastest. Longer axes are multiplied in halves: the sum
of a line's two halves has its even bins and their difference has its odd bins. Matrices of half the
height and width multiply these, with half the multiply-adds. From 1,024 samples on, axes are
transformed, and those of signals, whose lines are contiguous, from 256 on at fast lengths.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.long_axis import fourier_pool, fourier_spread
from diffstride.spectral.matrix import adjoint, analysis, halves, matrix, synthesis
from diffstride.spectral.memory_format import FIRST_DIM, FULL_PRECISION

# Lengths from which axes are pooled in halves and by transforms, measured on a CPU. One product is
# as fast as two halves at 256 samples, and takes 1.6 times as long at 384. From 384 to 1,023
# samples transforms are faster only for contiguous maps of a length without large prime factors.
HALVED_AXIS = 320
LONG_AXIS = 1024
# Signals take transforms at any length at which these cost less: from a length on, the cost would
# jump down there, and strides held to a budget would jump with it. Tests and benchmarks change it.
LONG_SIGNAL = 1
# Below `LONG_AXIS` a signal counts as transformed where that costs less, but is multiplied where
# that takes less time: short ones, and those with lengths that have a large prime factor.
FAST_SIGNAL = 256
LARGEST_FACTOR = 13


def pool_axis(
    axis: Axis,
    x: Tensor,
    dim: int,
    out: Tensor | None = None,
    learning: bool = False,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``A x`` and, while learning, the bins ``D_r^T x`` on the ramp.

    Where ``A`` is the identity, the first result is ``x`` itself. If given, ``out`` and ``kept``
    receive the two results, converted to their dtype.
    """
    if _pools_by_transforms(axis, x) and (learning or not axis.is_identity):
        y, bins = fourier_pool(axis, x, dim, learning)
        return _deliver(y, out), None if bins is None else _deliver(bins, kept)
    kind, bins = (x.dtype, x.device), None
    if learning:
        bins = multiply(analysis(axis, *kind), x, dim, 2 * len(axis.ramp), kept)
    if axis.is_identity:
        return _deliver(x, out), bins
    if is_halved(axis, x.dtype):
        y = multiply_halves(halves(axis, *kind), x, dim, axis.output_size, out)
        return y, bins
    return multiply(matrix(axis, *kind), x, dim, axis.output_size, out), bins


def spread_axis(
    axis: Axis, grad: Tensor, dim: int, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The adjoint: ``A^T grad``, written to ``out`` if given, and the bins ``U_r^T grad``."""
    if _pools_by_transforms(axis, grad):
        grad_x, bins = fourier_spread(axis, grad, dim)
        return _deliver(grad_x, out), bins
    kind = (grad.dtype, grad.device)
    bins = multiply(synthesis(axis, *kind), grad, dim, 2 * len(axis.ramp))
    if axis.is_identity:
        return _deliver(grad, out), bins
    if is_halved(axis, grad.dtype):
        grad_x = multiply_halves(halves(axis, *kind).mT, grad, dim, axis.size, out)
        return grad_x, bins
    return multiply(adjoint(axis, *kind), grad, dim, axis.size, out), bins


def takes_transforms(axis: Axis, is_signal: bool) -> bool:
    """Whether an axis counts as pooled by Fourier transforms: where they cost less than a matrix.

    From `LONG_AXIS` on it then is, and a signal below that where they are fast, too.

    Args:
        axis: how it is pooled.
        is_signal: whether it is the only one of its map.
    """
    of_transforms = cost_of_transforms(axis.size, axis.output_size)
    is_cheaper = of_transforms < axis.size * axis.output_size
    return is_cheaper and axis.size >= (LONG_SIGNAL if is_signal else LONG_AXIS)


def cost_of_transforms(size: float, output_size: float) -> float:
    """Multiply-adds of the two transforms of a line: ``5/4 (N log2 N + M log2 M)``."""
    return 1.25 * sum(n * math.log2(max(n, 1.0)) for n in (size, output_size))


def _pools_by_transforms(axis: Axis, x: Tensor) -> bool:
    """Whether an axis of this tensor is pooled by transforms.

    A signal below `LONG_AXIS` is not where products are faster, as in half precision, nor in a
    compiled program, which has no complex numbers.
    """
    if axis.size < LONG_AXIS:
        by_product = x.dtype not in FULL_PRECISION or torch.compiler.is_compiling()
        if by_product or not are_fast(axis.size, axis.output_size):
            return False
    return takes_transforms(axis, is_signal=x.dim() == FIRST_DIM + 1)


@lru_cache(1024)
def are_fast(size: int, output_size: int) -> bool:
    """Whether transforms of these lengths take less time than a product, as measured on a CPU."""
    return size >= FAST_SIGNAL and max(map(_largest_factor, (size, output_size))) <= LARGEST_FACTOR


def _largest_factor(number: int) -> int:
    """The largest prime factor.

    >>> [_largest_factor(n) for n in (1, 250, 254, 797)]
    [1, 5, 127, 797]
    """
    largest, factor = 1, 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number, largest = number // factor, factor
    return max(largest, number)


def is_halved(axis: Axis, dtype: torch.dtype) -> bool:
    """Whether an axis is multiplied in halves, which is no faster in half precision."""
    return (
        axis.size >= HALVED_AXIS
        and axis.size % 2 == axis.output_size % 2 == 0
        and dtype in FULL_PRECISION
    )


def _deliver(x: Tensor, out: Tensor | None) -> Tensor:
    return x if out is None else out.copy_(x)


def multiply(matrix: Tensor, x: Tensor, dim: int, length: int, out: Tensor | None = None) -> Tensor:
    """``matrix``, of ``length`` rows, times ``x`` along one dimension, in one large product.

    If given, ``out`` is contiguous and receives the result, converted to its dtype.
    """
    shape = with_length(x.shape, dim, length)
    leading, trailing = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    target = out if out is not None and out.dtype == x.dtype else None
    if trailing == 1:
        view = None if target is None else target.view(leading, length)
        y = torch.mm(x.reshape(leading, x.shape[dim]), matrix.T, out=view)
    else:
        view = None if target is None else target.view(leading, length, trailing)
        operator = matrix.expand(leading, length, x.shape[dim])
        y = torch.bmm(operator, x.reshape(leading, x.shape[dim], trailing), out=view)
    if out is not None and target is None:
        out.copy_(y.view(shape))
    return y.view(shape)


def multiply_halves(
    matrices: Tensor, x: Tensor, dim: int, length: int, out: Tensor | None = None
) -> Tensor:
    """The product along ``dim`` with a matrix given by its `halves`."""
    half = length // 2
    first, second = x.split(x.shape[dim] // 2, dim)
    even = multiply(matrices[0], first + second, dim, half)
    odd = multiply(matrices[1], first - second, dim, half)
    if out is None:
        return torch.cat([even + odd, even - odd], dim)
    first_out, second_out = out.split(half, dim)
    torch.add(even, odd, out=first_out)
    torch.sub(even, odd, out=second_out)
    return out


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of ``a * b``, accumulated in float32 or better."""
    if a.dtype not in FULL_PRECISION:
        # torch.dot adds half precision in scalar loops, and rounds the sum to half precision.
        a, b = a.float(), b.float()
    return torch.dot(a.reshape(-1), b.reshape(-1))


def with_length(shape: Sequence[int], dim: int, length: int) -> list[int]:
    return [*shape[:dim], length, *shape[dim + 1 :]]
