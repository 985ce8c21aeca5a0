"""Pooling layers: spectral ones with learned and with fixed strides; with them the spatial ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffstride._arguments import (
    as_strides,
    check_cropping,
    check_input,
    check_input_size,
    check_limits,
    check_window,
    clamp_strides,
)
from diffstride.functional import diff_stride
from diffstride.pooling.base import SizedPooling
from diffstride.spectral.axis_plan import Axis, plan_axis


class DiffStride(SizedPooling):
    """Pooling whose strides are parameters, learned by gradient descent with the weights.

    ``y = A(s_1) … A(s_n) x``: every spatial axis of length ``N`` is low-passed in the frequency
    domain by a window whose edge lies at bin ``N / (2 s)``, cropped, and transformed back, as one
    real matrix product per axis (`diffstride.spectral`), or on axes of 1,024 samples and more by
    Fourier transforms (`diffstride.spectral.axis_product`). The mean of the map is kept.

    After each step of the optimiser call `project_`, or let
    `diffstride.callbacks.StrideMonitor` do it.

    Maps may have any floating-point type; the strides stay in float32 when the module is moved to
    half precision, whose numbers are further apart than the steps of an optimiser. Fixed strides,
    and all in evaluation, are constants of a compiled program: after writing to them in place call
    `project_`.

    Warning:
        With the default ``edge="passband"`` (as published) a 32 x 32 map leaves a layer of
        stride 2 as 24 x 24: the transition band lies outside the nominal pass band. Choose
        ``edge="stopband"`` for 16 x 16, what a strided convolution gives.

    Reference: *Learning Strides in Convolutional Neural Networks*, ICLR 2022,
    https://arxiv.org/abs/2202.01653.

    Args:
        strides: initial strides, each at least 1 and within the limits. Their number is the
            number of spatial axes: one, two or three; a single number means two axes.
        smoothness_factor: transition width ``R > 0`` of the window, in frequency bins.
        cropping: whether the map shrinks; if not, it is only low-passed.
        trainable: whether the strides receive a gradient.
        shared_stride: whether one stride serves all axes.
        lower_limit_stride: smallest stride that `project_` allows, at least 1 (default 1).
        upper_limit_stride: largest stride that `project_` allows (default: no limit).
        edge: the end of the transition band that the stride sets, ``"passband"`` or
            ``"stopband"``.
        straight_through: whether every bin that is kept has gain 1, as in `FixedSpectralPooling`,
            and strides get the gradient that the window would give them (a straight-through
            estimator, https://arxiv.org/abs/1308.3432). A window takes from the bins at its edge
            what their samples cost all the same, on short maps a good part; a flat one does not,
            and at stride 1 is the identity. Needs ``cropping``.

    Shape:
        ``(B, C, N_1, …, N_n)`` to ``(B, C, M_1, …, M_n)`` with ``M`` from `output_size`.

    Raises:
        ValueError: if an argument is out of its range, or the input has another number of axes.

    >>> pool = DiffStride(strides=(2.0, 2.0), edge="stopband")
    >>> pool(torch.ones(1, 3, 32, 32)).shape
    torch.Size([1, 3, 16, 16])
    >>> pool
    DiffStride(strides=(2, 2), smoothness_factor=4, edge='stopband', learning)
    """

    strides: nn.Parameter

    def __init__(
        self,
        strides: Sequence[float] | float = (2.0, 2.0),
        smoothness_factor: float = 4.0,
        cropping: bool = True,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: float | None = None,
        upper_limit_stride: float | None = None,
        edge: str = "passband",
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        values = as_strides(strides)
        check_window(smoothness_factor, edge)
        check_cropping(cropping, straight_through)
        check_limits(lower_limit_stride, upper_limit_stride)
        if values != clamp_strides(values, lower_limit_stride, upper_limit_stride):
            raise ValueError(
                f"strides={strides!r} lie outside lower_limit_stride={lower_limit_stride!r}, "
                f"upper_limit_stride={upper_limit_stride!r}: start within the limits"
            )
        if shared_stride and len(set(values)) > 1:
            raise ValueError(f"shared_stride needs equal strides, but got {strides!r}")
        self.num_axes = len(values)
        self.smoothness_factor = smoothness_factor
        self.cropping = cropping
        self.shared_stride = shared_stride
        self.lower_limit_stride = lower_limit_stride
        self.upper_limit_stride = upper_limit_stride
        self.edge = edge
        self.straight_through = straight_through
        initial = values[:1] if shared_stride else values
        self.strides = nn.Parameter(
            torch.tensor(initial, dtype=torch.float32), requires_grad=trainable
        )
        self._values, self._spelled = values, tuple(map(repr, values))
        self._version: tuple[int, float] | None = None

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        if torch.compiler.is_compiling() and self.training and self.strides.requires_grad:
            from diffstride.pooling.eager import call_eagerly

            return call_eagerly(self, x)  # pyright: ignore[reportCallIssue]
        return self._pool(x)

    def _pool(self, x: Tensor) -> Tensor:
        values = self._read()
        learning = self.training or torch.is_grad_enabled()
        if self.strides.requires_grad and learning and not torch.compiler.is_compiling():
            self._version = None
        return diff_stride(
            x,
            self.strides,
            smoothness_factor=self.smoothness_factor,
            edge=self.edge,
            cropping=self.cropping,
            straight_through=self.straight_through,
            lower_limit_stride=self.lower_limit_stride,
            upper_limit_stride=self.upper_limit_stride,
            values=values,
        )

    def stride_values(self) -> tuple[float, ...]:
        """The strides as Python numbers within their limits, one per axis."""
        return clamp_strides(self._read(), self.lower_limit_stride, self.upper_limit_stride)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the map that comes out for one of ``input_size``.

        >>> DiffStride(2.0).output_size((32, 32))
        (24, 24)
        """
        return tuple(axis.output_size for axis in self.plan(input_size))

    def plan(
        self, input_size: Sequence[int], strides: Sequence[float] | None = None
    ) -> tuple[Axis, ...]:
        """How each axis of a map of ``input_size`` is pooled, by the layer's strides or others."""
        check_input_size(self, input_size)
        values = self._read() if strides is None else strides
        values = clamp_strides(values, self.lower_limit_stride, self.upper_limit_stride)
        return tuple(
            plan_axis(size, stride, *self.window_settings)
            for size, stride in zip(input_size, values, strict=True)
        )

    @property
    def window_settings(self) -> tuple[float, str, bool, bool]:
        """The arguments of `diffstride.spectral.plan_axis` behind size and stride."""
        return self.smoothness_factor, self.edge, self.cropping, self.straight_through

    @torch.no_grad()
    def project_(self) -> None:
        """Move the strides back into their limits, in place.

        Nothing else writes the parameter: `forward` clamps in the computation. To be called
        after a step of the optimiser, and after strides were written through ``.data``.
        """
        self.strides.clamp_(self.lower_limit_stride or 1.0, self.upper_limit_stride)
        self._refresh()

    def extra_repr(self) -> str:
        strides = ", ".join(f"{value:.4g}" for value in self.stride_values())
        state = "learning" if self.strides.requires_grad else "fixed"
        options = [f"strides=({strides})", f"smoothness_factor={self.smoothness_factor:g}"]
        options += [f"edge={self.edge!r}"]
        options += ["cropping=False"] * (not self.cropping)
        options += ["straight_through=True"] * self.straight_through
        options += ["shared_stride=True"] * self.shared_stride
        for name in ("lower_limit_stride", "upper_limit_stride"):
            if getattr(self, name) is not None:
                options.append(f"{name}={getattr(self, name):g}")
        return ", ".join([*options, state])

    # The output length is a Python integer, so the host has to know the strides. Reading them
    # costs nothing on a CPU. An accelerator is asked once per change of the parameter, and with
    # gradients once per use, unless `project_` has just asked: fused optimisers change a parameter
    # and do not tell. What else does not move its version (moving, loading, `.data`) refreshes.

    def _read(self) -> tuple[float, ...]:
        if torch.compiler.is_compiling():
            # Constants of the program, as train() or eval() last read them. The compiler makes
            # a variable of a number that has changed once, but never of a string.
            return tuple([float(value) for value in self._spelled])
        if self._is_at_hand() or self._version != _version_of(self.strides):
            self._refresh()
        return self._values

    def _is_at_hand(self) -> bool:
        return self.strides.device.type == "cpu"

    def _refresh(self) -> None:
        if self.strides.is_meta:
            return
        if hasattr(self.strides, "full_tensor"):
            raise TypeError(
                "the strides are sharded (DTensor), and each process needs them whole: use "
                "DistributedDataParallel, or keep them out of fully_shard (its ignored_params, new "
                "in torch 2.7) and average their gradients"
            )
        values = tuple(self.strides.tolist())
        self._values = values * self.num_axes if self.shared_stride else values
        self._spelled = tuple(map(repr, self._values))
        self._version = _version_of(self.strides)

    def train(self, mode: bool = True) -> "DiffStride":
        self._refresh()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "DiffStride":
        exact = self.strides.detach()
        super()._apply(*args, **kwargs)
        self._keep_exact(exact)
        self._refresh()
        return self

    def _keep_exact(self, exact: Tensor) -> None:
        """Have the strides in float32 at least, from ``exact`` where they are in less."""
        if self.strides.dtype in (torch.bfloat16, torch.float16):
            # Their steps, of 1/128 from 1 on, are larger than those of any optimiser.
            dtype = torch.promote_types(exact.dtype, torch.float32)
            self.strides.data = exact.to(self.strides.device, dtype)
            self.strides.grad = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._keep_exact(self.strides.detach())  # assign=True takes a checkpoint's dtype
        self._refresh()


def _version_of(parameter: Tensor) -> tuple[int, float]:
    """Another after each change; of a tensor that does not count them, not even equal to itself."""
    # A parameter may have been replaced, too, by `torch.func.functional_call` for a moment.
    return id(parameter), float("nan") if parameter.is_inference() else parameter._version
