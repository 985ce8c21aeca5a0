"""The matrices of an axis where they are used, each computed once.

They are functions of a few numbers. Small caches hold those in use: in training the last step's,
in evaluation those of every layer, so that nothing is computed twice.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from diffstride.spectrum import Axis, axis_matrix, ramp_factors


def as_constant(cached: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let compiled programs hold what ``cached`` returns for plain numbers as a constant.

    The tracer would look through a cache if it saw one, and compute what is at hand. Tensors alone
    it names after their function, all alike, which all backends but ``"eager"`` refuse; in a tuple
    each gets a name of its own.
    """

    def constant(*args: Any) -> tuple[Tensor]:
        return (cached(*args),)

    # What `torch.compiler.assume_constant_result` sets, which would import the compiler with us.
    constant._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return lambda *args: constant(*args)[0]


def apart(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Have ``make`` compute on true tensors, uncounted, whatever is going on around it.

    A network may be run on fake tensors, to see its shapes, or in inference mode, as Lightning
    validates before it trains: what is cached must be of use afterwards.
    """

    def made(*args: Any) -> Tensor:
        # While a program is traced, which is not what `is_compiling` says: that is true of
        # torch.export as well, which runs all this on fake tensors.
        if torch.compiler.is_dynamo_compiling():
            return make(*args)
        # What is made in inference mode could take part in no training later.
        with torch.inference_mode(False), _disable_current_modes():
            return make(*args)

    return made


def matrix(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of one axis where ``x`` is, formed in float64 and rounded once."""
    return _matrix(*tuple(axis), dtype, device)


@as_constant
@lru_cache(maxsize=256)
@apart
def _matrix(*args: Any) -> Tensor:
    *fields, dtype, device = args
    return axis_matrix(Axis(*fields)).to(device, dtype)


def halves(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of even lengths by its even and its odd bins, ``(2, M/2, N/2)``.

    Half a line further even bins are what they were and odd bins change their sign. So ``A`` is
    ``[[E + O, E - O], [E - O, E + O]]`` with the two matrices ``E`` and ``O`` returned.
    """
    return _halves(*tuple(axis), dtype, device)


@as_constant
@lru_cache(maxsize=64)
@apart
def _halves(*args: Any) -> Tensor:
    *fields, dtype, device = args
    axis = Axis(*fields)
    left, right = axis_matrix(axis)[: axis.output_size // 2].split(axis.size // 2, 1)
    return (torch.stack([left + right, left - right]) / 2).to(device, dtype)


@lru_cache(maxsize=256)
@apart
def adjoint(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A^T``, laid out for products of its own."""
    return matrix(axis, dtype, device).T.contiguous()


def analysis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``D_r^T`` of one axis where ``x`` is."""
    return _ramp_factor(axis.size, axis.output_size, axis.ramp, 1, dtype, device)


def synthesis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``U_r^T`` of one axis where ``grad_y`` is."""
    return _ramp_factor(axis.size, axis.output_size, axis.ramp, 0, dtype, device)


@lru_cache(maxsize=256)
@apart
def _ramp_factor(
    size: int, output_size: int, ramp: range, which: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # Keyed by the bins and not by the stride: most steps move no bin onto or off the ramp.
    return ramp_factors(size, output_size, ramp)[which].T.to(device, dtype).contiguous()
