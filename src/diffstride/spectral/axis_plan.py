"""How one axis is pooled, from its length and stride: cutoff, window, output length.

An axis of length ``N`` is low-passed by a window ``m(k)`` over its frequency bins
``k = 0 … floor(N/2)`` (the same gain for ``+k`` and ``-k``), cropped to ``M`` samples and
transformed back. `diffstride.spectral.matrix` computes this as one real matrix. Reference:
*Learning Strides in Convolutional Neural Networks*, ICLR 2022, https://arxiv.org/abs/2202.01653.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Edge = Literal["passband", "stopband"]
EDGES: tuple[Edge, ...] = get_args(Edge)
CPU = "cpu"  # not the default device: cached tensors serve all devices
ROUNDING = 1e-7  # relative: strides are stored in float32


class Axis(NamedTuple):
    """How one axis is pooled at its stride.

    ``size`` and ``output_size`` are lengths in samples. ``stride`` is the value in use. ``cutoff``
    is the first zero of the window, infinite without a ramp, and ``transition`` the width of the
    ramp that ends there, both in frequency bins. If ``flat``, all bins have gain 1, and only the
    stride's gradient uses the ramp.
    """

    size: int
    output_size: int
    stride: float
    cutoff: float = math.inf
    transition: float = 1.0
    flat: bool = False

    @property
    def ramp(self) -> range:
        """The bins whose gain changes with the stride; never bin 0, so the mean is kept."""
        if math.isinf(self.cutoff):
            return range(0)
        first = max(1, math.ceil(self.cutoff - self.transition))
        return range(first, min(math.floor(self.cutoff), self.output_size // 2) + 1)

    @property
    def num_bins(self) -> int:
        """How many bins, from bin 0 on, both the axis and its output have."""
        return min(self.size, self.output_size) // 2 + 1

    @property
    def is_identity(self) -> bool:
        """Whether all bins of the axis are kept at gain 1, so that nothing is pooled.

        >>> plan_axis(32, 1.0).is_identity, plan_axis(32, 1.1).is_identity
        (True, False)
        """
        return self.flat and self.output_size == self.size

    @property
    def slope(self) -> float:
        """The derivative ``dm/ds = -N / (2 s^2 R)`` of the window's gain on the ramp."""
        return -self.size / (2 * self.stride**2 * self.transition)

    def without_ramp(self) -> "Axis":
        """If flat, the axis of the same lengths without a ramp, else this one: equal gains.

        >>> plan_axis(32, 2.1).without_ramp() == plan_axis(32, 2.12).without_ramp()
        True
        """
        return Axis(self.size, self.output_size, 1.0, flat=True) if self.flat else self


def transition_width(size: int, smoothness_factor: float = 4.0, edge: Edge = "stopband") -> float:
    """Width of the window's ramp in bins: the smoothness factor ``R``, limited by the length ``N``.

    ``min(R, N/4)`` for ``edge="passband"``, ``max(1, min(R, N/8))`` for ``edge="stopband"``.

    >>> transition_width(32), transition_width(8), transition_width(8, edge="passband")
    (4.0, 1.0, 2.0)
    """
    check_edge(edge)
    if edge == "passband":
        return min(smoothness_factor, size / 4)
    return max(1.0, min(smoothness_factor, size / 8))


def check_edge(edge: str) -> None:
    """Refuse any ``edge`` that is not in `EDGES`."""
    if edge not in EDGES:
        raise ValueError(f"edge must be one of {', '.join(map(repr, EDGES))}, but got {edge!r}")


def smallest_stride(size: int, smoothness_factor: float = 4.0, edge: Edge = "stopband") -> float:
    """The smallest stride in use: ``N / (N - R)`` (passband edge) or 1 (stopband edge).

    >>> smallest_stride(32), round(smallest_stride(32, edge="passband"), 4)
    (1.0, 1.1429)
    """
    transition = transition_width(size, smoothness_factor, edge)
    return 1.0 if edge == "stopband" else size / (size - transition)


def plan_axis(
    size: int,
    stride: float,
    smoothness_factor: float = 4.0,
    edge: Edge = "stopband",
    cropping: bool = True,
    straight_through: bool = True,
) -> Axis:
    """Compute cutoff, ramp and output length of one axis.

    With ``edge="passband"`` (as published) the window is flat up to ``N/(2s)`` and its cutoff is
    ``c = N/(2s) + R``, so that ``M = min(N, 2 ceil(c))``. With ``edge="stopband"`` the cutoff is
    ``c = N/(2s)`` and ``M = min(N, ceil(N/s))``, the length that a padded strided convolution
    returns. Without ``cropping`` the axis keeps its length and is only low-passed.

    Args:
        size: length ``N >= 1`` of the axis, in samples.
        stride: how many samples become one; at least 1, may exceed ``size``.
        smoothness_factor: transition width ``R > 0``, in bins.
        edge: the end of the ramp that the stride sets, ``"passband"`` or ``"stopband"``.
        cropping: whether the axis is shortened.
        straight_through: whether all bins have gain 1 and the window serves the gradient only.

    >>> plan_axis(32, 2.0).output_size, plan_axis(32, 2.0, edge="passband").output_size
    (16, 24)
    """
    transition = transition_width(size, smoothness_factor, edge)
    stride = max(stride, smallest_stride(size, smoothness_factor, edge))
    if edge == "passband":
        cutoff = size / (2 * stride) + transition
        output_size = min(size, 2 * whole(cutoff))
    else:
        # From a stride of N/2 on, bin 1 is the last one on the ramp. The window stops moving there,
        # so that bin 1 still gives the stride a gradient.
        stride_of_window = min(stride, max(1.0, size / 2))
        cutoff = size / (2 * stride_of_window)
        output_size = min(size, max(1, whole(size / stride)))
    output_size = output_size if cropping else size
    return Axis(size, output_size, stride, cutoff, transition, straight_through)


class WindowSettings(NamedTuple):
    """The arguments of `plan_axis` that do not change in a training."""

    smoothness_factor: float = 4.0
    edge: Edge = "stopband"
    cropping: bool = True
    straight_through: bool = True

    def plan(self, size: int, stride: float) -> Axis:
        """How an axis of this size is pooled at this stride."""
        return plan_axis(size, stride, *self)


class FixedLength(NamedTuple):
    """In place of `WindowSettings`: one length, whatever comes in and whatever the stride.

    All bins that both lengths have are kept; the axis may become longer.

    >>> FixedLength(6).plan(9, 1.0).stride, FixedLength(6).plan(4, 1.0).num_bins
    (1.5, 3)
    """

    output_size: int

    def plan(self, size: int, stride: float) -> Axis:
        """How an axis of this size is brought to the length; the stride does not count."""
        return Axis(size, self.output_size, size / self.output_size, flat=True)


def whole(length: float) -> int:
    """``ceil(length)``, but a rounding error does not count as a sample.

    The float32 nearest to 1.4 is a little less than 1.4, so 56 divided by it exceeds 40.

    >>> whole(40.0), whole(40.000001), whole(40.001)
    (40, 40, 41)
    """
    nearest = round(length)
    return nearest if abs(length - nearest) <= ROUNDING * length else math.ceil(length)


def output_size(
    size: int,
    stride: float,
    smoothness_factor: float = 4.0,
    edge: Edge = "stopband",
    cropping: bool = True,
) -> int:
    """Length of a pooled axis; arguments as for `plan_axis`.

    >>> [output_size(32, 2.0), output_size(24, 2.0), output_size(32, 2.0, edge="passband")]
    [16, 12, 24]
    """
    return plan_axis(size, stride, smoothness_factor, edge, cropping).output_size


def window(axis: Axis) -> Tensor:
    """Gains ``m(k) = clip((c - k)/R, 0, 1)`` of the bins ``k = 0 … floor(min(M, N)/2)``, float64.

    All gains of a flat axis are 1. Bin 0 always has gain 1, so that the mean is kept even where the
    cutoff is below one transition width.

    >>> window(plan_axis(32, 4.0, straight_through=False))
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    bins = torch.arange(axis.num_bins, dtype=torch.float64, device=CPU)
    if axis.flat:
        return torch.ones_like(bins)
    gains = ((axis.cutoff - bins) / axis.transition).clamp_(0.0, 1.0)
    gains[0] = 1.0
    return gains
