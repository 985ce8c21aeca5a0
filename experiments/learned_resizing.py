"""Learned resizing of other authors, written anew: layers that take the place of `DiffStride`.

Both shrink a map to the sizes that `DiffStride` gives at the same strides, and learn their strides
by gradients. So `CostBudget` holds them to a cost, in place of the penalties of their papers, and
all differences in accuracy come from the pooling and from the gradient of the strides.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import gin
import torch
import torch.nn.functional as F
from torch import Tensor

from diffstride.pooling.base import Plan
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import Axis


class LearnedResizing(DiffStride):
    """A pooling layer with the strides, limits and map sizes of `DiffStride`, of two axes."""

    has_matrices = False

    def __init__(self, strides: Sequence[float] | float = 2.0, **limits: Any) -> None:
        super().__init__(strides, **limits)
        if self.num_axes != 2:
            raise ValueError(f"{type(self).__name__} pools two axes, but got {strides!r}")

    def _pool(self, x: Tensor) -> Tensor:
        axes = self.plan(x.shape[2:])
        if all(axis.is_identity for axis in axes):
            return x
        with torch.autocast(x.device.type, enabled=False):
            return self._resize(x.float(), axes, self._watched_strides()).to(x.dtype)

    def _resize(self, x: Tensor, axes: Plan, strides: Tensor) -> Tensor:
        raise NotImplementedError


class DynOPool(LearnedResizing):
    """The largest of four bilinear samples in each cell of the output.

    A cell has the height and width ``s = N / M``, as there are ``M`` whole cells. Its samples lie
    ``s / 4`` from its centre, on both axes. So ``s`` moves all samples, and its gradient is that of
    bilinear interpolation by the position. The stride gets the gradient of ``s``.

    Reference: *Pooling Revisited: Your Receptive Field is Suboptimal*, CVPR 2022,
    https://arxiv.org/abs/2205.15254.
    """

    def _resize(self, x: Tensor, axes: Plan, strides: Tensor) -> Tensor:
        vertical, horizontal = (
            _positions(axis, stride) for axis, stride in zip(axes, strides.expand(2), strict=True)
        )
        grid = torch.stack(torch.meshgrid(horizontal, vertical, indexing="xy"), -1)
        grid = grid.expand(len(x), -1, -1, -1)
        sampled = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        return F.max_pool2d(sampled, 2)

    def multiply_adds(self, axes: Any, sizes: Any, output_sizes: Any) -> Any:
        """Four for each of the four samples of an output."""
        return 0 if all(axis.is_identity for axis in axes) else 16 * prod(output_sizes)


def _positions(axis: Axis, stride: Tensor) -> Tensor:
    """Where the ``2 M`` samples of an axis lie, from -1 to 1 over the map."""
    size = 2 * axis.output_size
    cell = axis.size / axis.output_size + (stride - stride.detach())
    at = (torch.arange(size, device=stride.device) + 0.5) * cell / 2
    return 2 * at / axis.size - 1


class ShapeAdaptor(LearnedResizing):
    """A mixture of two max poolings of whole sizes, both enlarged or shrunk to the output size.

    For a stride ``s`` between ``k`` and ``k + 1`` it is
    ``y = a G(pool_k(x)) + (1 - a) G(pool_(k+1)(x))`` on each axis. Here ``pool_1(x) = x``, ``G`` is
    linear interpolation to the output size, and ``a`` follows from
    ``1 / s = a / k + (1 - a) / (k + 1)``. The stride learns by this weight. The paper has
    ``k = 1``, strides up to 2, and one stride for both axes.

    Reference: *Shape Adaptor: A Learnable Resizing Module*, ECCV 2020,
    https://arxiv.org/abs/2008.00892.
    """

    def _resize(self, x: Tensor, axes: Plan, strides: Tensor) -> Tensor:
        for dim, (axis, stride) in enumerate(zip(axes, strides.expand(2), strict=True), start=2):
            if not axis.is_identity:
                k = max(1, min(int(stride.item()), axis.size - 1))
                weight = (k * (k + 1) / stride - k).clamp(min=0)  # at most 1, as s >= k
                larger, smaller = (_shrunk(x, dim, by, axis.output_size) for by in (k, k + 1))
                x = torch.lerp(smaller, larger, weight)
        return x

    def multiply_adds(self, axes: Any, sizes: Any, output_sizes: Any) -> Any:
        """Four on each axis: two samples of each branch; the mixture counts as theirs."""
        height, width = output_sizes
        first, second = (not axis.is_identity for axis in axes)
        return 4 * height * (first * sizes[1] + second * width)


def _shrunk(x: Tensor, dim: int, k: int, size: int) -> Tensor:
    """The largest of ``k`` samples along an axis, interpolated to a size."""
    kernel = (k, 1) if dim == 2 else (1, k)
    pooled = F.max_pool2d(x, kernel, ceil_mode=True)
    shape = [*pooled.shape[2:]]
    shape[dim - 2] = size
    return F.interpolate(pooled, shape, mode="bilinear", align_corners=False)


for layer in (DynOPool, ShapeAdaptor):
    gin.external_configurable(layer, module="resizing")
