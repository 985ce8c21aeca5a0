"""Pooling with learnable strides."""

import weakref
from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from diffstride import _arguments
from diffstride._arguments import (
    Limit,
    check_input,
    clamp_strides,
    each_limit,
    pooled_sizes,
)
from diffstride._stride_text import strides_text
from diffstride._torch_compat import COMPILES_FUNCTIONS, is_transformed, outside_jit_trace
from diffstride.functional import read_strides
from diffstride.pooling.base import Plan, SpectralPooling
from diffstride.spectral.autograd import pool
from diffstride.spectral.axis_plan import Axis, Edge, WindowSettings


class DiffStride(SpectralPooling):
    """Pooling whose strides are parameters, learned by gradient descent with the weights.

    ``y = A(s_1) … A(s_n) x``: every spatial axis of length ``N`` is low-passed in the frequency
    domain by a window whose edge lies at bin ``N / (2 s)``, cropped, and transformed back. Each
    axis takes one real matrix product (`diffstride.spectral`), or Fourier transforms if it has
    1,024 samples or more, or is a signal for which they are faster. The mean of the map is kept.

    Call `project_` after each optimiser step, or use `diffstride.callbacks.StrideMonitor`. Call it
    too after writing strides in place: compiled programs hold fixed strides, and in evaluation all
    strides, as constants. Strides stay in float32 when the module is moved to half precision,
    whose numbers are further apart than the steps of an optimiser.

    The published layer is ``DiffStride(edge="passband", straight_through=False)``: it pools a
    32 x 32 map with stride 2 to 24 x 24. The defaults give 16 x 16, as a strided convolution does.

    Reference: *Learning Strides in Convolutional Neural Networks*, ICLR 2022,
    https://arxiv.org/abs/2202.01653.

    Args:
        strides: initial strides, each at least 1 and within the limits, one for each of one to
            three spatial axes; a single number means two axes.
        smoothness_factor: transition width ``R > 0`` of the window, in frequency bins.
        cropping: whether the map shrinks; if not, it is only low-passed.
        trainable: whether the strides receive a gradient.
        shared_stride: whether one stride serves all axes.
        lower_limit_stride: smallest stride that `project_` allows, at least 1 (default 1); one
            number, or one for each axis.
        upper_limit_stride: largest stride that `project_` allows (default: no limit); likewise. A
            limit of 1 keeps an axis as it is.
        edge: the end of the transition band that the stride sets, ``"passband"`` or
            ``"stopband"``.
        straight_through: whether the forward pass keeps every bin at gain 1, as
            `FixedSpectralPooling` does, and only the gradient of the strides uses the window (a
            straight-through estimator, https://arxiv.org/abs/1308.3432). A stride of 1 is then the
            identity. Needs ``cropping``.
        fixed_size: the length in samples of each axis that has one whatever comes in, as in
            `AdaptiveSpectralPooling`; None for an axis whose stride sets it. The stride of a fixed
            axis is 1 and stays. By default no axis is fixed. Needs ``cropping``.
        data_format: refused; an argument of the published layer.

    Shape:
        ``(B, C, N_1, …, N_n)``, floating point, to ``(B, C, M_1, …, M_n)`` with ``M`` from
        `output_size`.

    Raises:
        ValueError: if an argument is out of its range, or the input has another number of axes.

    >>> pool = DiffStride(strides=(2.0, 2.0))
    >>> pool(torch.ones(1, 3, 32, 32)).shape
    torch.Size([1, 3, 16, 16])
    >>> DiffStride([2.0])
    DiffStride(strides=(2), smoothness_factor=4, edge='stopband', straight_through=True, learning)
    """

    strides: nn.Parameter
    has_stride_gradient = True  # `MeasuredStrides` needs none
    _seen: "tuple[weakref.ref[Tensor], float] | None" = None  # the parameter when it was read

    def __init__(
        self,
        strides: Sequence[float] | float = (2.0, 2.0),
        smoothness_factor: float = 4.0,
        cropping: bool = True,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: Limit = None,
        upper_limit_stride: Limit = None,
        edge: Edge = "stopband",
        straight_through: bool = True,
        data_format: None = None,
        fixed_size: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        _arguments.refuse_data_format(data_format)
        values = _arguments.as_strides(strides)
        _arguments.check_window(smoothness_factor, edge, cropping, straight_through)
        axes = None if shared_stride else len(values)
        _arguments.check_limits(lower_limit_stride, upper_limit_stride, axes)
        if fixed_size is not None:
            self.fixed_size = _arguments.as_fixed_size(fixed_size, values, cropping, shared_stride)
            lower_limit_stride = _with_ones(lower_limit_stride, fixed_size)
            upper_limit_stride = _with_ones(upper_limit_stride, fixed_size)
        if values != clamp_strides(values, lower_limit_stride, upper_limit_stride):
            raise ValueError(
                f"strides={strides!r} lie outside lower_limit_stride={lower_limit_stride!r}, "
                f"upper_limit_stride={upper_limit_stride!r}: start within the limits"
            )
        if shared_stride and len(set(values)) > 1:
            raise ValueError(f"shared_stride needs equal strides, but got {strides!r}")
        self.num_axes, self.shared_stride = len(values), shared_stride
        self.smoothness_factor = smoothness_factor
        self.edge: Edge = edge
        self.cropping, self.straight_through = cropping, straight_through
        self.lower_limit_stride = lower_limit_stride
        self.upper_limit_stride = upper_limit_stride
        initial = torch.tensor(values[:1] if shared_stride else values, dtype=torch.float32)
        self.strides = nn.Parameter(initial, requires_grad=trainable)
        self._values, self._texts = values, tuple(map(repr, values))

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files have: strides that learn by gradients, whatever moves them here."""
        own = {name: value for name, value in vars(self).items() if name != "has_stride_gradient"}
        return own | {"_seen": None}  # a reference to this parameter

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        if self._learns_in_program():
            from diffstride.pooling.eager import call_eagerly

            return call_eagerly(self, x)  # pyright: ignore[reportCallIssue]
        return self._pool(x)

    def _learns_in_program(self) -> bool:
        """Whether a program is being compiled that cannot hold the gradient of the strides."""
        if not (torch.compiler.is_compiling() and self.strides.requires_grad):
            return False
        return self.training or (not COMPILES_FUNCTIONS and torch.is_grad_enabled())

    def _pool(self, x: Tensor) -> Tensor:
        # Not in `forward`: torch.export compiles eager calls too, and would call it for ever.
        axes = self.plan(pooled_sizes(x, self.num_axes))
        return pool(x, axes, self._watched_strides())

    def stride_values(self) -> tuple[float, ...]:
        """The strides as Python numbers within their limits, one per axis."""
        return clamp_strides(self._read(), self.lower_limit_stride, self.upper_limit_stride)

    def plan(self, input_size: Sequence[int], strides: Sequence[float] | None = None) -> Plan:
        values = self._read() if strides is None else strides
        values = clamp_strides(values, self.lower_limit_stride, self.upper_limit_stride)
        return super().plan(input_size, values)

    @property
    def kept_axes(self) -> tuple[int, ...]:
        highest = enumerate(each_limit(self.upper_limit_stride, self.num_axes))
        kept = [i for i, limit in highest if limit == 1 or not self.cropping]
        return tuple(i for i in kept if i not in self.fixed_axes)

    def size_slopes(self, axis: Axis) -> tuple[float, float]:
        if not self.cropping or (self.edge == "passband" and 2 * axis.cutoff >= axis.size):
            return 1.0, 0.0
        by_size, by_stride = super().size_slopes(axis)
        # The passband edge adds the transition width, R or N/4, at both ends of the spectrum.
        follows = self.edge == "passband" and axis.transition != self.smoothness_factor
        return by_size + follows / 2, by_stride

    @property
    def learns_size(self) -> bool:
        return self.cropping and self.strides.requires_grad

    @property
    def window_settings(self) -> WindowSettings:
        """The arguments of `diffstride.spectral.plan_axis` that follow size and stride."""
        return WindowSettings(
            self.smoothness_factor, self.edge, self.cropping, self.straight_through
        )

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp the strides to their limits, in place; `forward` never writes the parameter."""
        lower, upper = self.lower_limit_stride, self.upper_limit_stride
        if isinstance(lower, Sequence) or isinstance(upper, Sequence):
            for i, limits in enumerate(self.limits):
                self.strides[i].clamp_(*limits)
        else:
            self.strides.clamp_(lower or 1.0, upper)
        self._refresh()

    @property
    def limits(self) -> list[tuple[float, float]]:
        """The smallest and the largest stride that `project_` allows, for each parameter."""
        lower, upper = self.lower_limit_stride, self.upper_limit_stride
        each = (each_limit(limit, len(self.strides)) for limit in (lower, upper))
        return [(low or 1.0, high or inf) for low, high in zip(*each, strict=True)]

    @torch.no_grad()
    def write_(self, strides: Tensor, values: Sequence[float]) -> None:
        """Write strides whose values the host knows, in place: nothing is read from the device.

        Args:
            strides: the new strides, within the limits.
            values: the same numbers.
        """
        self.strides.copy_(strides)
        self._refresh(values)

    def extra_repr(self) -> str:
        values = self._read()
        in_use = self.stride_values() if all(map(isfinite, values)) else values
        strides = strides_text(in_use, form=".4g", between=", ")
        state = "learning" if self.strides.requires_grad else "fixed"
        options = [f"strides=({strides})", f"smoothness_factor={self.smoothness_factor:g}"]
        options += [f"edge={self.edge!r}", *["cropping=False"] * (not self.cropping)]
        options += [f"straight_through={self.straight_through}"]
        options += ["shared_stride=True"] * self.shared_stride
        options += [f"fixed_size={self.fixed_size}"] * (self.fixed_size is not None)
        for name in ("lower_limit_stride", "upper_limit_stride"):
            limit = getattr(self, name)
            if any(each for i, each in enumerate(each_limit(limit, 1)) if i not in self.fixed_axes):
                options.append(f"{name}={_limit_text(limit)}")
        return ", ".join([*options, state])

    # The output length is a Python integer, so the host has to know the strides. On a CPU it reads
    # them at every call, which costs nothing. On an accelerator it reads them when the parameter's
    # version has changed. Fused optimisers do not change the version, so the first call after a
    # backward pass reads again, unless `project_` has. Moving and loading read them too.

    def _read(self) -> tuple[float, ...]:
        if torch.compiler.is_compiling():
            # Constants of the program. They are strings because the compiler turns a number that
            # has changed once into a variable.
            return tuple([float(value) for value in self._texts])
        if self._is_on_cpu() or self._has_changed():
            self._refresh()
        return self._values

    def _watched_strides(self) -> Tensor:
        """The parameter, or a view of it whose gradient makes the next call read it again."""
        if not self.has_stride_gradient:
            return self.strides.detach()
        learning = self.training or torch.is_grad_enabled()
        if self._is_on_cpu() or not (self.strides.requires_grad and learning):
            return self.strides
        if torch.compiler.is_compiling():
            return self.strides
        if is_transformed(self.strides) or not torch.is_grad_enabled():
            self._seen = None
            return self.strides
        watched = self.strides.view_as(self.strides)
        watched.register_hook(self._forget)
        return watched

    def _forget(self, _: Tensor) -> None:
        self._seen = None

    def _has_changed(self) -> bool:
        """Whether the parameter was written to since it was read, or is another one."""
        if self._seen is None:
            return True
        seen, version = self._seen  # `torch.func.functional_call` replaces it for a moment
        return seen() is not self.strides or version != _version_of(self.strides)

    def _is_on_cpu(self) -> bool:
        return self.strides.device.type == "cpu"

    def _refresh(self, known: Sequence[float] | None = None) -> None:
        """Let the host know the strides: those ``known`` to it, or else by reading them."""
        if self.strides.is_meta:
            return
        if hasattr(self.strides, "full_tensor"):
            raise TypeError(
                "the strides are sharded (DTensor), but each process needs all of them: use "
                "DistributedDataParallel, or pass them to fully_shard as ignored_params and "
                "average their gradients"
            )
        if known is None:
            with outside_jit_trace():
                known = read_strides(self.strides)
        values = tuple(known)
        self._values = values * self.num_axes if self.shared_stride else values
        self._texts = tuple(map(repr, self._values))
        self._seen = weakref.ref(self.strides), _version_of(self.strides)

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
        """Keep the strides in float32 or better, with the values of ``exact``."""
        if self.strides.dtype in (torch.bfloat16, torch.float16):
            dtype = torch.promote_types(exact.dtype, torch.float32)
            self.strides.data = exact.to(self.strides.device, dtype)
            self.strides.grad = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._keep_exact(self.strides.detach())  # assign=True takes a checkpoint's dtype
        self._refresh()


def _with_ones(limit: Limit, fixed_size: Sequence[int | None]) -> Limit:
    """A limit of each stride, which is 1 on fixed axes."""
    each = zip(each_limit(limit, len(fixed_size)), fixed_size, strict=True)
    return tuple(limit if fixed is None else 1.0 for limit, fixed in each)


def _limit_text(limit: Limit) -> str:
    if not isinstance(limit, Sequence):
        return f"{limit:g}"
    return f"({', '.join('None' if each is None else f'{each:g}' for each in limit)})"


def _version_of(parameter: Tensor) -> float:
    """How often a parameter was written to; NaN, never equal, for inference tensors."""
    return float("nan") if parameter.is_inference() else parameter._version
