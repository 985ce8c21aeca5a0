"""A pooling layer whose strides are constants, for deployment."""

from collections.abc import Sequence
from math import ceil, log
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffstride._arguments import check_tensor
from diffstride._torch_compat import is_jit_tracing
from diffstride.pooling.base import Lengths, Plan, SizedPooling, SpectralPooling
from diffstride.spectral.axis_plan import Axis, FixedLength, WindowSettings, whole
from diffstride.spectral.axis_product import multiply
from diffstride.spectral.map_product import axis_order, multiply_adds
from diffstride.spectral.matrix import axis_matrix
from diffstride.spectral.memory_format import FIRST_DIM, full_precision, layout_of
from diffstride.spectral.portable import multiply_compiled, multiply_portably

USUAL = WindowSettings()


class FrozenPooling(SizedPooling):
    """A pooling layer as constant matrices: ``y = A_1 … A_n x`` for the map sizes it was given.

    Made by `diffstride.freeze`. Its only state are matrices, as buffers, so that programs with it
    can be exported.

    Args:
        strides: strides, one per axis, each at least 1.
        settings: arguments of `diffstride.spectral.plan_axis` that follow size and stride.
        round_to: if given, strides are rounded as in `diffstride.freeze`.
        fixed_size: the length of each axis that has one whatever its stride, None for others; None
            if none has.

    Shape:
        ``(B, C, N_1, …, N_n)`` to ``(B, C, M_1, …, M_n)``, for sizes given to `add_size` only.

    Raises:
        ValueError: if a map has a size that was not added.

    >>> from diffstride import DiffStride
    >>> pool = FrozenPooling.of(DiffStride(2.0))
    >>> pool.add_size((8, 8))
    >>> pool(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 4, 4])
    >>> pool
    FrozenPooling((8, 8) -> (4, 4))
    """

    def __init__(
        self,
        strides: Sequence[float],
        settings: WindowSettings = USUAL,
        round_to: float | None = None,
        fixed_size: tuple[int | None, ...] | None = None,
    ) -> None:
        super().__init__()
        self.num_axes = len(strides)
        self.settings, self.round_to, self.fixed_size = settings, round_to, fixed_size
        self.frozen_strides = tuple(strides)
        self.plans: dict[tuple[int, ...], Plan] = {}  # by map size

    @classmethod
    def of(cls, layer: SpectralPooling, round_to: float | None = None) -> "FrozenPooling":
        """A layer with the strides of another one as constants."""
        if not layer.has_matrices:
            kind = type(layer).__name__
            raise NotImplementedError(f"{kind} cannot be frozen: it has no matrices")
        return cls(layer.stride_values(), layer.window_settings, round_to, layer.fixed_size)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "sizes" in state:  # pickled by version 0.2
            self.settings = WindowSettings(*self.settings)
            for name in ("sizes", "orders", "_rounded"):
                vars(self).pop(name, None)
            self.plans = {size: self._axes(size) for size in state["sizes"]}

    def add_size(
        self, sizes: Sequence[int], dtype: torch.dtype = torch.float32, device: Any = None
    ) -> None:
        """Compute the matrices for maps of the spatial size ``sizes``."""
        axes = self.plans[tuple(sizes)] = self._axes(sizes)
        for i, axis in enumerate(axes):
            if not axis.is_identity:
                self.register_buffer(f"matrix_{i}_{axis.size}", axis_matrix(axis).to(device, dtype))

    def stride_values(self) -> tuple[float, ...]:
        """The strides, rounded for the first map size that was added if they are rounded."""
        first = next(iter(self.plans.values()), ())
        return tuple(axis.stride for axis in first) or self.frozen_strides

    @property
    def fixed_axes(self) -> tuple[int, ...]:
        """All axes: their lengths are those of the sizes that were added."""
        return tuple(range(self.num_axes))

    def _axes(self, sizes: Sequence[int]) -> Plan:
        fixed = self.fixed_size or (None,) * self.num_axes
        return tuple(map(self._axis, sizes, self.frozen_strides, fixed))

    def _axis(self, size: int, stride: float, fixed: int | None) -> Axis:
        if fixed is not None:
            return FixedLength(fixed).plan(size, stride)
        axis = self.settings.plan(size, stride)
        if self.round_to is None or axis.output_size == size:
            return axis
        whole_sizes = self.settings._replace(edge="stopband", cropping=True)
        return whole_sizes.plan(size, nearest_stride(axis, self.round_to))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):  # of a tracer that looks into all modules but torch's
            tracer: Any = x.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x,), {})
        check_tensor(x)
        sizes = tuple(int(size) for size in x.shape[2:])  # TorchScript traces them as tensors
        axes = self.plan(sizes)
        names = {i: f"matrix_{i}_{sizes[i]}" for i in axis_order(axes)}
        # Identities have none. On torch 2.8 the compiler cannot ask axes for it.
        matrices = {i: getattr(self, each) for i, each in names.items() if hasattr(self, each)}
        if not matrices:
            return x.clone()  # an operation in place may follow
        with full_precision(x):
            return self._pool(x, matrices)

    def _pool(self, x: Tensor, matrices: dict[int, Tensor]) -> Tensor:
        if torch.compiler.is_compiling() or is_jit_tracing():
            portable = is_jit_tracing() or torch.compiler.is_exporting() or self.num_axes != 2
            product = multiply_portably if portable else multiply_compiled
            for i, matrix in matrices.items():
                x = product(matrix.to(x.dtype), x, 2 + i)
            return x
        layout = layout_of(x, self.num_axes)
        dense = layout.enter(x).to(layout.compute_dtype)
        for i, matrix in matrices.items():
            dense = multiply(matrix.to(dense.dtype), dense, FIRST_DIM + i, len(matrix))
        return layout.leave(dense)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output for a map of ``input_size``, given to `add_size`."""
        return tuple(axis.output_size for axis in self.plan(input_size))

    def plan(self, input_size: Sequence[int], strides: Sequence[float] | None = None) -> Plan:
        """How each axis of a map of ``input_size`` is pooled; its strides are constants."""
        sizes = tuple(input_size)
        if sizes not in self.plans:
            known = " or ".join(map(str, self.plans)) or "no size, as the example did not reach it"
            raise ValueError(
                f"the pooling was frozen for maps of {known}, but got {sizes}: freeze the network "
                "with an example of the size to be used"
            )
        return self.plans[sizes]

    def multiply_adds(self, axes: Sequence[Axis], sizes: Lengths, output_sizes: Lengths) -> float:
        return multiply_adds(axes, sizes, output_sizes, transforms=False)

    def extra_repr(self) -> str:
        return ", ".join(f"{size} -> {self.output_size(size)}" for size in self.plans)


def nearest_stride(axis: Axis, round_to: float) -> float:
    """The multiple of ``round_to``, or 1, whose map size ``ceil(N/s)`` is nearest to the axis's.

    Of two equally near sizes, the nearer stride wins.

    >>> usual = WindowSettings()
    >>> [nearest_stride(usual.plan(32, s), 1) for s in (1.2, 1.4, 2.4, 2.8)]
    [1, 2, 2, 3]
    """
    strides = [1, *(k * round_to for k in range(1, ceil(axis.size / round_to) + 1))]

    def distance(stride: float) -> tuple[float, float]:
        size = whole(axis.size / stride)
        return abs(size - axis.output_size), abs(log(stride / axis.stride))

    return min((stride for stride in strides if stride >= 1), key=distance)


def is_frozen(model: nn.Module) -> bool:
    """Whether a network has layers of `freeze`.

    >>> is_frozen(nn.Sequential(nn.ReLU()))
    False
    """
    return any(isinstance(module, FrozenPooling) for module in model.modules())
