"""Pooling in plain operations that every exporter, tracer and compiler supports."""

from torch import Tensor

from diffstride._torch_compat import outside_jit_trace
from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.map_product import axis_order
from diffstride.spectral.matrix import axis_matrix


def pool_by_constants(x: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """Pool the last axes of ``x`` as planned, by constant matrices of a traced program."""
    with outside_jit_trace():
        first = x.dim() - len(axes)
        matrices = [(axis_matrix(axes[i]).to(x), first + i) for i in axis_order(axes)]
    for matrix, dim in matrices:
        x = multiply_portably(matrix, x, dim)
    return x


def multiply_portably(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """``matrix`` times one axis of ``x``."""
    if dim == x.dim() - 1:
        return x @ matrix.T
    if dim == x.dim() - 2:
        return matrix @ x
    return (matrix @ x.flatten(dim + 1)).unflatten(-1, x.shape[dim + 1 :])


def multiply_compiled(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """As `multiply_portably`, as a product of two matrices, for maps of two axes.

    A compiler that has laid ``x`` out channels-last copies it for that. Of a batched product it
    leaves the layout to the library, which then multiplies map by map.
    """
    lines = x.transpose(dim, -1)
    y = lines.reshape(-1, x.shape[dim]) @ matrix.T
    return y.view(*lines.shape[:-1], len(matrix)).transpose(dim, -1).contiguous()
