"""Pooling in the spatial domain with whole strides: average, max and blur pooling."""

from collections.abc import Sequence
from math import comb, prod
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffstride import _arguments
from diffstride._arguments import as_whole_numbers, check_input, map_size
from diffstride.pooling.base import Lengths, SizedPooling
from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.memory_format import FULL_PRECISION, full_precision


class _WholeStrides(SizedPooling):
    """Pooling with whole strides, and ``M = ceil(N / s)`` samples per axis."""

    def __init__(self, strides: Sequence[float] | float) -> None:
        super().__init__()
        self.strides = as_whole_numbers(strides)
        self.num_axes = len(self.strides)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output for a map of ``input_size``.

        >>> SpatialPooling(2, 3).output_size((32, 32))
        (11, 11)
        """
        _arguments.check_input_size(self, input_size)
        return tuple(map(_ceil_div, input_size, self.strides))


class SpatialPooling(_WholeStrides):
    """Average pooling with padding such that ``M = ceil(N / s)``.

    An odd amount of padding has its larger half at the end. Averages leave padded samples out. With
    the default ``pool_size=1`` it takes every ``s``-th sample.

    Args:
        pool_size: window of the average per axis, at least 1 sample; a single number serves
            all axes.
        strides: integer strides, each at least 1; a single number means two axes.
        data_format: refused; an argument of the published layer.

    Shape:
        ``(B, C, N_1, …, N_n)`` to ``(B, C, ceil(N_1 / s_1), …, ceil(N_n / s_n))``.

    Raises:
        ValueError: if an argument is no whole number of at least 1, or the numbers of axes differ.

    >>> SpatialPooling(2, 2)(torch.tensor([[[[1.0, 3.0, 5.0]]]]))
    tensor([[[[2., 5.]]]])
    """

    def __init__(
        self,
        pool_size: Sequence[int] | int = 1,
        strides: Sequence[float] | float = (2, 2),
        data_format: None = None,
    ) -> None:
        super().__init__(strides)
        _arguments.refuse_data_format(data_format)
        sizes = (pool_size,) * self.num_axes if isinstance(pool_size, int | float) else pool_size
        self.pool_size = as_whole_numbers(sizes, "pool_size")
        if len(self.pool_size) != self.num_axes:
            raise ValueError(
                f"pool_size={pool_size!r} and strides={strides!r} must have one number per "
                "spatial axis each"
            )

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        pads = [self._padding(size, i) for i, size in enumerate(map_size(x))]
        average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.num_axes - 1]
        if not any(map(sum, pads)):
            return average(x, self.pool_size, self.strides)
        padding = [pad for pair in reversed(pads) for pad in pair]
        counted = F.pad(x.new_ones(1, 1, *x.shape[2:]), padding)
        total = average(F.pad(x, padding), self.pool_size, self.strides)
        return total / average(counted, self.pool_size, self.strides)

    def _padding(self, size: int, axis: int) -> tuple[int, int]:
        pool_size, stride = self.pool_size[axis], self.strides[axis]
        missing = max(0, (_ceil_div(size, stride) - 1) * stride + pool_size - size)
        return missing // 2, missing - missing // 2

    def extra_repr(self) -> str:
        return f"pool_size={self.pool_size}, strides={self.strides}"


class MaxPooling(_WholeStrides):
    """Max pooling as in residual networks: windows of 3 centred on every ``s``-th sample.

    ``y[i] = max x[s i - 1 … s i + 1]``, with windows cut off at the borders. An axis of stride 1
    is not pooled.

    Reference: the stem of *Deep Residual Learning for Image Recognition*, 2016,
    https://arxiv.org/abs/1512.03385.

    Args:
        strides: integer strides, each at least 1; a single number means two axes.
        pool_size: window in samples along the axes of stride above 1; odd, at least 1.

    Shape:
        ``(B, C, N_1, …, N_n)`` to ``(B, C, ceil(N_1 / s_1), …, ceil(N_n / s_n))``.

    Raises:
        ValueError: if a stride is no whole number of at least 1, or ``pool_size`` is not odd.

    >>> MaxPooling([2])(torch.tensor([[[5.0, 1.0, 2.0, 3.0]]]))
    tensor([[[5., 3.]]])
    """

    def __init__(self, strides: Sequence[float] | float = (2, 2), pool_size: int = 3) -> None:
        super().__init__(strides)
        if not isinstance(pool_size, Real) or pool_size < 1 or pool_size % 2 != 1:
            raise ValueError(f"pool_size must be an odd number of samples, but got {pool_size!r}")
        self.pool_size = int(pool_size)

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        if max(self.strides) == 1:
            return x.clone()  # an operation in place may follow
        windows = [self.pool_size if stride > 1 else 1 for stride in self.strides]
        padding = [window // 2 for window in windows]
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.num_axes - 1]
        return pool(x, windows, self.strides, padding)

    def extra_repr(self) -> str:
        return f"strides={self.strides}, pool_size={self.pool_size}"


class BlurPooling(_WholeStrides):
    """Anti-aliased subsampling: a binomial filter on every channel, then every ``s``-th sample.

    ``y[i] = sum_j b[j] x[s i + j - (K - 1) // 2]`` with ``b[j] = binomial(K - 1, j) / 2^(K - 1)``
    along each axis of stride above 1, with the map mirrored at its borders. A constant map keeps
    its value.

    Reference: *Making Convolutional Networks Shift-Invariant Again*, ICML 2019,
    https://arxiv.org/abs/1904.11486.

    Args:
        strides: integer strides, each at least 1; a single number means two axes.
        filter_size: taps ``K`` of the filter, at least 1; the default, 3, is 1/4, 1/2, 1/4.

    Shape:
        ``(B, C, N_1, …, N_n)`` to ``(B, C, ceil(N_1 / s_1), …, ceil(N_n / s_n))``.

    Raises:
        ValueError: if a stride or ``filter_size`` is no whole number of at least 1.

    >>> BlurPooling([2])(torch.tensor([[[4.0, 0.0, 0.0, 8.0]]]))
    tensor([[[2., 2.]]])
    """

    kernel: Tensor

    def __init__(self, strides: Sequence[float] | float = (2, 2), filter_size: int = 3) -> None:
        super().__init__(strides)
        (self.filter_size,) = as_whole_numbers((filter_size,), "filter_size")
        self.register_buffer("kernel", self._filter(), persistent=False)

    def _filter(self, device: torch.device | None = None) -> Tensor:
        choices = [comb(self.filter_size - 1, j) for j in range(self.filter_size)]
        binomial = torch.tensor(choices, device=device)
        kernel = torch.ones((), device=device)
        for stride in self.strides:
            taps = binomial / binomial.sum() if stride > 1 else torch.ones(1, device=device)
            kernel = kernel[..., None] * taps
        return kernel

    def _apply(self, *args: Any, **kwargs: Any) -> "BlurPooling":
        super()._apply(*args, **kwargs)
        # `to_empty` does not initialise the kernel, and no checkpoint contains it.
        self.kernel = self._filter(self.kernel.device).to(self.kernel.dtype)
        return self

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        if max(self.strides) == 1:
            return x.clone()  # an operation in place may follow
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.num_axes - 1]
        channels = x.shape[1]
        # In half precision oneDNN computes the gradient of depthwise filters much more slowly.
        on_cpu = x.device.type == "cpu" and x.dtype not in FULL_PRECISION
        padded = self._pad(x.float() if on_cpu else x)
        weight = self.kernel.to(padded.dtype).expand(channels, 1, *self.kernel.shape)
        with full_precision(x):
            return convolve(padded, weight, stride=self.strides, groups=channels).to(x.dtype)

    def _pad(self, x: Tensor) -> Tensor:
        padding: dict[str, list[int]] = {"reflect": [], "replicate": []}
        for size, taps in zip(reversed(map_size(x)), reversed(self.kernel.shape), strict=True):
            sides = [(taps - 1) // 2, taps // 2]
            mirrors = max(sides) < size  # too short a map repeats its border samples
            padding["reflect"] += sides if mirrors else [0, 0]
            padding["replicate"] += [0, 0] if mirrors else sides
        for mode, sides in padding.items():
            x = F.pad(x, sides, mode) if any(sides) else x
        return x

    def multiply_adds(self, axes: Sequence[Axis], sizes: Lengths, output_sizes: Lengths) -> Any:
        taps = self.kernel.numel() if max(self.strides) > 1 else 0
        return taps * prod(output_sizes)

    def extra_repr(self) -> str:
        return f"strides={self.strides}, filter_size={self.filter_size}"


def _ceil_div(size: int, stride: int) -> int:
    return -(-size // stride)
