"""All private parts of PyTorch that the library uses.

Tried on PyTorch 2.6.0, the oldest release that the package declares, and on 2.14.1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Fake tensors have a shape and no data: the analysis runs networks on them.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

# The proxy of `torch.fx` for an attribute of a traced value.
from torch.fx.proxy import Attribute

# The base classes of layers of one to three axes.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Conv
from torch.nn.modules.conv import _ConvTransposeNd as ConvTranspose
from torch.nn.modules.padding import _CircularPadNd as CircularPad
from torch.nn.modules.padding import _ReflectionPadNd as ReflectionPad

# A context without fake tensors and operation counters, to compute on real tensors.
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

# Nested tuples, lists and dictionaries of tensors, as networks take them.
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "FAKE_TENSOR_LOGGER",
    "Attribute",
    "BatchNorm",
    "CircularPad",
    "Conv",
    "ConvTranspose",
    "FakeTensorMode",
    "ReflectionPad",
    "conv_padding",
    "disable_current_modes",
    "disable_functorch",
    "in_forward_mode",
    "is_compiled",
    "is_functorch_tensor",
    "mark_constant",
    "multiplies_fast",
    "tree_leaves",
    "tree_map_only",
    "uncompiled",
]

# Logs each error on a fake tensor with its traceback.
FAKE_TENSOR_LOGGER = "torch._subclasses.fake_tensor"


def disable_functorch() -> Any:
    """A context outside all transforms of `torch.func`."""
    return torch._C._DisableFuncTorch()  # pyright: ignore[reportAttributeAccessIssue]


def is_functorch_tensor(x: Tensor) -> bool:
    """Whether ``x`` is wrapped by a transform of `torch.func`."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore


def in_forward_mode() -> bool:
    """Whether the code runs inside a context of `torch.autograd.forward_ad`."""
    return forward_ad._current_level >= 0


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
