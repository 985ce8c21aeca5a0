"""A pooling layer whose strides have become constants."""

from collections.abc import Sequence
from math import ceil, log
from typing import Any

import torch
from torch import Tensor

from diffstride.pooling.base import SizedPooling
from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.autograd import axis_order
from diffstride.spectral.axis_plan import Axis, plan_axis, plan_spectral_axis, whole
from diffstride.spectral.axis_product import multiply
from diffstride.spectral.matrix import axis_matrix
from diffstride.spectral.memory_format import FIRST_DIM, full_precision, layout_of


class FrozenPooling(SizedPooling):
    """A pooling layer as constant matrices: ``y = A_1 … A_n x`` for the map sizes it has met.

    Made by `freeze`. Nothing but matrix products with buffers is left, so that programs can be
    exported.

    >>> pool = FrozenPooling(DiffStride(2.0, edge="stopband"))
    >>> pool.meet((8, 8))
    >>> pool(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 4, 4])
    >>> pool
    FrozenPooling((8, 8) -> (4, 4))
    """

    def __init__(
        self, layer: DiffStride | FixedSpectralPooling, round_to: float | None = None
    ) -> None:
        super().__init__()
        self.layer_axes = [_Planner(layer, i, round_to) for i in range(layer.num_axes)]
        self.sizes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.orders: dict[tuple[int, ...], list[int]] = {}

    def meet(
        self, sizes: Sequence[int], dtype: torch.dtype = torch.float32, device: Any = None
    ) -> None:
        """Make the matrices for maps of these sizes."""
        axes = [plan(size) for plan, size in zip(self.layer_axes, sizes, strict=True)]
        self.sizes[tuple(sizes)] = tuple(axis.output_size for axis in axes)
        self.orders[tuple(sizes)] = axis_order(axes)
        for i, axis in enumerate(axes):
            self.register_buffer(f"matrix_{i}_{axis.size}", axis_matrix(axis).to(device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        sizes = tuple(int(size) for size in x.shape[2:])  # TorchScript traces them as tensors
        self._check_met(sizes)
        with full_precision(x):
            return self._pool(x, {i: f"matrix_{i}_{sizes[i]}" for i in self.orders[sizes]})

    def _pool(self, x: Tensor, names: dict[int, str]) -> Tensor:
        matrices = {i: getattr(self, name) for i, name in names.items()}
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
            for i, matrix in matrices.items():
                x = _multiply(matrix.to(x.dtype), x, 2 + i)
            return x
        layout = layout_of(x, len(matrices))
        dense = layout.enter(x).to(layout.compute_dtype)
        for i, matrix in matrices.items():
            dense = multiply(matrix.to(dense.dtype), dense, FIRST_DIM + i, len(matrix))
        return layout.leave(dense)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the map that comes out for one of ``input_size``."""
        self._check_met(tuple(input_size))
        return self.sizes[tuple(input_size)]

    def _check_met(self, sizes: tuple[int, ...]) -> None:
        if sizes not in self.sizes:
            met = " or ".join(map(str, self.sizes)) or "no size, as the example did not reach it"
            raise ValueError(
                f"the pooling was frozen for maps of {met}, but got {sizes}: freeze the network "
                "with an example of the size to be used"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{before} -> {after}" for before, after in self.sizes.items())


class _Planner:
    """How one axis of a layer is pooled, its stride being what it is now."""

    def __init__(self, layer: Any, index: int, round_to: float | None) -> None:
        self.fixed = isinstance(layer, FixedSpectralPooling)
        self.stride = layer.strides[index] if self.fixed else layer.stride_values()[index]
        self.round_to = round_to
        if not self.fixed:
            self.settings = layer.window_settings

    def __call__(self, size: int) -> Axis:
        if self.fixed:
            axis = plan_spectral_axis(size, self.stride)
        else:
            axis = plan_axis(size, self.stride, *self.settings)
        if self.round_to is None or axis.output_size == size:
            return axis
        stride = nearest_stride(axis, self.round_to)
        if self.fixed:
            return plan_spectral_axis(size, stride)
        smoothness_factor, *_, straight_through = self.settings
        window = smoothness_factor, "stopband", True, straight_through
        return plan_axis(size, stride, *window)


def nearest_stride(axis: Axis, round_to: float) -> float:
    """The multiple of ``round_to``, or 1, whose map size ``ceil(N/s)`` is nearest to an axis'.

    Of two as near, the nearer in stride.

    >>> [nearest_stride(plan_axis(32, s, edge="stopband"), 1) for s in (1.2, 1.4, 2.4, 2.8)]
    [1, 2, 2, 3]
    """
    strides = [1, *(k * round_to for k in range(1, ceil(axis.size / round_to) + 1))]

    def distance(stride: float) -> tuple[float, float]:
        size = whole(axis.size / stride)
        return abs(size - axis.output_size), abs(log(stride / axis.stride))

    return min((stride for stride in strides if stride >= 1), key=distance)


def _multiply(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """``matrix`` times one axis of ``x``, in operations that every exporter knows."""
    if dim == x.dim() - 1:
        return x @ matrix.T
    if dim == x.dim() - 2:
        return matrix @ x
    return (matrix @ x.flatten(dim + 1)).unflatten(-1, x.shape[dim + 1 :])
