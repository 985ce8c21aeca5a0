"""The matrices of an axis where they are used, each computed once.

They are functions of a few numbers. Small caches hold those in use: in training the last step's,
in evaluation those of every layer, so that nothing is computed twice.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffstride.spectrum import Axis, axis_matrix, ramp_factors


def matrix(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of one axis where ``x`` is, formed in float64 and rounded once."""
    return _constant_matrix(*tuple(axis), dtype, device)


def _constant_matrix(*args: Any) -> Tensor:
    # A compiled program gets the finished matrix. Its tracer hands over plain numbers only,
    # and would look through the cache if it saw one.
    return _cached_matrix(*args)


# What `torch.compiler.assume_constant_result` sets, which would import the compiler with us.
_constant_matrix._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@lru_cache(maxsize=256)
def _cached_matrix(*args: Any) -> Tensor:
    *fields, dtype, device = args
    return axis_matrix(Axis(*fields)).to(device, dtype)


@lru_cache(maxsize=256)
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
def _ramp_factor(
    size: int, output_size: int, ramp: range, which: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # Keyed by the bins and not by the stride: most steps move no bin onto or off the ramp.
    return ramp_factors(size, output_size, ramp)[which].T.to(device, dtype).contiguous()
