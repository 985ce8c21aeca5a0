"""All private parts of PyTorch that the library uses, and kinds of tensors.

Tried on PyTorch 2.6.0, the oldest release that the package declares, and on 2.14.1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.proxy import Attribute as Attribute
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map_only as tree_map_only

# The base classes of layers of one to three axes.
BatchNorm = nn.modules.batchnorm._BatchNorm
Conv = nn.modules.conv._ConvNd
ConvTranspose = nn.modules.conv._ConvTransposeNd
CircularPad = nn.modules.padding._CircularPadNd
ReflectionPad = nn.modules.padding._ReflectionPadNd

# A context without fake tensors and operation counters, to compute on real tensors.
disable_current_modes = _disable_current_modes

# Logs each error on a fake tensor with its traceback.
FAKE_TENSOR_LOGGER = "torch._subclasses.fake_tensor"


def disable_functorch() -> Any:
    """A context outside all transforms of `torch.func`."""
    return torch._C._DisableFuncTorch()  # pyright: ignore[reportAttributeAccessIssue]


def is_transformed(x: Tensor) -> bool:
    """Whether a program is being compiled, or ``x`` is inside a transform of `torch.func`."""
    return torch.compiler.is_compiling() or is_wrapped(x)


def is_wrapped(x: Tensor) -> bool:
    """Whether ``x`` is inside a transform of `torch.func`; False while a program is compiled."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore


def has_tangent(x: Tensor) -> bool:
    """Whether ``x`` is a dual number of `torch.autograd.forward_ad`."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None


def mark_constant(function: Callable[..., Any]) -> None:
    """As `torch.compiler.assume_constant_result`, but without importing the compiler."""
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def multiplies_fast(dtype: torch.dtype) -> bool:
    """Whether this CPU has matrix products in ``dtype``, a half-precision type."""
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False)
    return supported()


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module`` was returned by `torch.compile`."""
    return hasattr(module, "_orig_mod")


def uncompiled(model: nn.Module) -> nn.Module:
    """The network that `torch.compile` was given; other models as they are."""
    return getattr(model, "_orig_mod", model)


def conv_padding(conv: Conv) -> Sequence[int]:
    """The padding of a convolution as `torch.nn.functional.pad` takes it: last axis first."""
    return conv._reversed_padding_repeated_twice


def set_conv_padding(conv: Conv, sizes: list[int]) -> None:
    """Set what `conv_padding` returns."""
    conv._reversed_padding_repeated_twice = sizes
