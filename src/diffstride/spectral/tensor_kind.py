"""Kinds of tensors: plain, compiled, inside a transform, dual number, constant."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from diffstride._torch_compat import in_forward_mode, is_functorch_tensor


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary CPU tensor, so that results may be written block by block."""
    ordinary = x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)
    return ordinary and not is_transformed(x) and not has_tangent(x)


def is_transformed(x: Tensor) -> bool:
    """Whether a program is being compiled, or ``x`` is inside a transform of `torch.func`."""
    return torch.compiler.is_compiling() or is_functorch_tensor(x)


def is_wrapped(x: Tensor) -> bool:
    """Whether ``x`` is inside a transform of `torch.func`; False while a program is compiled."""
    return not torch.compiler.is_compiling() and is_functorch_tensor(x)


def has_tangent(x: Tensor) -> bool:
    """Whether ``x`` is a dual number of `torch.autograd.forward_ad`."""
    if torch.compiler.is_compiling() or not in_forward_mode():
        return False
    return forward_ad.unpack_dual(x).tangent is not None


def is_constant(strides: Tensor) -> bool:
    """Whether no derivative with respect to ``strides`` is asked for."""
    learning = strides.requires_grad and torch.is_grad_enabled()
    return not (learning or has_tangent(strides))
