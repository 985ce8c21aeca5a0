"""Spectral pooling of tensors, by real matrix products or, for long axes, by transforms."""

from collections.abc import Sequence

from torch import Tensor

from diffstride import _arguments
from diffstride._arguments import MAX_AXES, as_strides, clamp_strides, pooled_sizes
from diffstride._torch_compat import numbers_of
from diffstride.spectral.autograd import pool
from diffstride.spectral.axis_plan import Edge, plan_axis


def diff_stride(
    x: Tensor,
    strides: Tensor | Sequence[float] | float,
    *,
    smoothness_factor: float = 4.0,
    edge: Edge = "stopband",
    cropping: bool = True,
    straight_through: bool = True,
    lower_limit_stride: float | None = None,
    upper_limit_stride: float | None = None,
    values: Sequence[float] | None = None,
) -> Tensor:
    """Pool the last axes of ``x`` by fractional strides, with gradients of both.

    ``y = A(s_1) … A(s_n) x``: every axis of length ``N`` is low-passed by a window whose edge
    lies at bin ``N / (2 s)`` and cropped in the frequency domain, see `diffstride.spectral`. The
    window moves smoothly with the stride, and the output length in whole samples. Strides outside
    their limits are clamped, but still receive a gradient.

    Reference: *Learning Strides in Convolutional Neural Networks*, ICLR 2022,
    https://arxiv.org/abs/2202.01653.

    Args:
        x: floating point, ``(…, N_1, …, N_n)``, for example ``(B, C, H, W)``. Contiguous or
            channels-last; the output has the same memory format.
        strides: one stride per pooled axis, each at least 1; a single number means two axes.
        smoothness_factor: transition width ``R > 0`` of the window, in frequency bins.
        edge: the end of the transition band that the stride sets, ``"stopband"`` (32 at stride 2
            gives 16) or ``"passband"`` (as published; 32 at stride 2 gives 24).
        cropping: whether the axes are shortened; if not, they are only low-passed.
        straight_through: whether every bin keeps gain 1, as in `spectral_pool`, and only the
            gradient of the strides uses the window. If not, the window is applied (as published).
            Needs ``cropping``.
        lower_limit_stride, upper_limit_stride: limits of the strides, at least 1.
        values: the strides as Python numbers. If None, the tensor of strides is read, for which
            the host waits for an accelerator.

    Returns:
        ``(…, M_1, …, M_n)`` with ``M = spectral.output_size(N, s)``, in the dtype of ``x``.

    Raises:
        ValueError: if ``x`` has too few or empty axes, or an argument is out of its range.
        TypeError: if ``x`` is not floating point.

    >>> import torch
    >>> x = torch.arange(8.0).expand(1, 1, 8, 8)
    >>> diff_stride(x, 4.0)[0, 0]
    tensor([[3., 4.],
            [3., 4.]])
    """
    _arguments.check_window(smoothness_factor, edge, cropping, straight_through)
    _arguments.check_limits(lower_limit_stride, upper_limit_stride)
    if values is None:
        values = read_strides(strides) if isinstance(strides, Tensor) else as_strides(strides)
    values = clamp_strides(values, lower_limit_stride, upper_limit_stride)
    axes = tuple(
        plan_axis(size, value, smoothness_factor, edge, cropping, straight_through)
        for size, value in zip(pooled_sizes(x, len(values)), values, strict=True)
    )
    return pool(x, axes, strides if isinstance(strides, Tensor) else None)


def spectral_pool(x: Tensor, strides: Sequence[float] | float) -> Tensor:
    """Pool the last axes of ``x`` by cropping its spectrum, without a window.

    ``y = A_1 … A_n x`` with all gains 1 and ``M = ceil(N / s)``; the identity at stride 1.

    Reference: *Spectral Representations for Convolutional Neural Networks*, NeurIPS 2015,
    https://arxiv.org/abs/1506.03767.

    Args:
        x: floating point, ``(…, N_1, …, N_n)``; the output has the same memory format.
        strides: one stride per pooled axis, each at least 1; a single number means two axes.

    Returns:
        ``(…, ceil(N_1 / s_1), …, ceil(N_n / s_n))``.

    Raises:
        ValueError: if ``x`` has too few or empty axes, or a stride is below 1.
        TypeError: if ``x`` is not floating point.

    >>> import torch
    >>> spectral_pool(torch.tensor([[1.0, 3.0, 1.0, 3.0]]), [2.0])
    tensor([[2., 2.]])
    """
    values = as_strides(strides)
    return pool(x, tuple(map(plan_axis, pooled_sizes(x, len(values)), values)))


def read_strides(strides: Tensor) -> tuple[float, ...]:
    """The values of a tensor of strides; a scalar tensor means two axes."""
    if strides.dim() > 1:
        raise ValueError(f"strides must be a vector, but got shape {tuple(strides.shape)}")
    if not 1 <= strides.numel() <= MAX_AXES:
        raise ValueError(
            f"strides must be 1 to {MAX_AXES} numbers, one per axis, but are {strides.numel()}"
        )
    try:
        return tuple(numbers_of(strides if strides.dim() else strides.expand(2)))
    except RuntimeError as error:
        raise RuntimeError(
            "the strides have no values to read, and the output length depends on them (a vmap "
            "over them, or fake tensors): loop over the strides, or pass values="
        ) from error
