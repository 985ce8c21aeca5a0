"""All private parts of PyTorch that the library uses, and kinds of tensors.

Tried on PyTorch 2.8.0, the oldest release that the package declares, and on 2.14.1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException as _DataDependent
from torch._subclasses.fake_tensor import DynamicOutputShapeException as _DynamicShape
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.proxy import Attribute as Attribute
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map_only as tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

# The base classes of layers of one to three axes.
BatchNorm = nn.modules.batchnorm._BatchNorm
Conv = nn.modules.conv._ConvNd
ConvTranspose = nn.modules.conv._ConvTransposeNd
CircularPad = nn.modules.padding._CircularPadNd
InstanceNorm = nn.modules.instancenorm._InstanceNorm
ReflectionPad = nn.modules.padding._ReflectionPadNd

DataDependentError = _DataDependent  # raised where a fake tensor has to have data
DynamicShapeError = _DynamicShape  # where the shape of a result depends on data

# A context without fake tensors and operation counters, to compute on real tensors.
disable_current_modes = _disable_current_modes

# Logs each error on a fake tensor with its traceback.
FAKE_TENSOR_LOGGER = "torch._subclasses.fake_tensor"


def shares_memory(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors begin at the same place of one storage; on the meta device, too."""
    same_storage = x.untyped_storage()._cdata == y.untyped_storage()._cdata
    return same_storage and bool(x.storage_offset() == y.storage_offset())


def has_function_mode() -> bool:
    """Whether a `torch.overrides.TorchFunctionMode` is active."""
    return torch._C._len_torch_function_stack() > 0  # pyright: ignore[reportAttributeAccessIssue]


def is_jit_tracing() -> bool:
    """Whether `torch.jit.trace` is running."""
    return torch._C._get_tracing_state() is not None


@contextmanager
def outside_jit_trace() -> Iterator[None]:
    """A context outside `torch.jit.trace`: what is computed there is a constant of the trace."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # pyright: ignore[reportAttributeAccessIssue]


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


def is_transforming() -> bool:
    """Whether a transform of `torch.func` is running, whatever tensors it has wrapped."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportAttributeAccessIssue]


def numbers_of(x: Tensor) -> list[float]:
    """The values of a vector, also inside transforms of `torch.func`, where PyTorch 2.8 reads none.

    A `torch.func.vmap` over ``x`` has no one value: ``RuntimeError``.
    """
    if torch.compiler.is_compiling():
        return x.tolist()
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    while functorch.is_gradtrackingtensor(x):  # what a transform that differentiates wraps
        x = functorch.get_unwrapped(x)
    with disable_functorch():
        return x.tolist()


def has_tangent(x: Tensor) -> bool:
    """Whether ``x`` is a dual number of `torch.autograd.forward_ad`."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None


# Whether programs of `torch.compile` may hold the library's autograd functions. PyTorch 2.8 fails
# there with an internal error; 2.11 is the oldest release that was tried and does not.
COMPILES_FUNCTIONS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)


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


def has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether hooks of an optimiser run.

    They do not for some optimisers around others, as those of accelerate and timm, which never call
    the initialiser of their base class.
    """
    return hasattr(optimizer, "_optimizer_state_dict_post_hooks")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile`, ``DataParallel`` and ``DistributedDataParallel``."""
    model = uncompiled(model)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return uncompiled(model.module)
    return model


def saves_by_hooks() -> bool:
    """Whether autograd saves tensors by hooks, as a checkpoint of activations does."""
    autograd = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    return getattr(autograd, "_top_saved_tensors_default_hooks", lambda _: None)(False) is not None


def set_conv_padding(conv: Conv, sizes: list[int]) -> None:
    """Set how a convolution whose mode is not "zeros" pads, in `torch.nn.functional.pad`'s form."""
    conv._reversed_padding_repeated_twice = sizes


def empty_wrapper(cls: type[Tensor], like: Tensor) -> Any:
    """A tensor of a subclass, with the shape, dtype and device of ``like`` and without memory."""
    return Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module; for a parametrized module the class that it had before."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def hook_dictionaries(module: nn.Module) -> Sequence[dict[Any, Any]]:
    """The hooks that run before ``forward``, and those that run after it."""
    return module._forward_pre_hooks, module._forward_hooks


def call_with_hooks(
    module: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
) -> Any:
    """Call ``forward`` between the forward hooks of a module, as the module itself does.

    The values may be stand-ins without data. A hook that fails on them, since it prints numbers or
    saves them, is left out: it returns nothing in the network either.
    """
    for key, hook in module._forward_pre_hooks.items():
        if key in module._forward_pre_hooks_with_kwargs:
            changed = _try(hook, module, args, kwargs)
            args, kwargs = (args, kwargs) if changed is None else changed
        else:
            changed = _try(hook, module, args)
            changed = args if changed is None else changed
            args = changed if isinstance(changed, tuple) else (changed,)
    result = forward(*args, **kwargs)
    for key, hook in module._forward_hooks.items():
        options = (kwargs,) if key in module._forward_hooks_with_kwargs else ()
        changed = _try(hook, module, args, *options, result)
        result = result if changed is None else changed
    return result


def _try(hook: Callable[..., Any], *args: Any) -> Any:
    try:
        return hook(*args)
    except Exception:
        return None


# Fused attention that torch's counter takes to be free, by devices and releases.
ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_fused_attention_overrideable",
)


# Fused recurrent layers that torch's counter takes to be free, by devices. Behind the sequences
# they take two matrices, or a list of matrices and biases.
RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")


class OperationCounter(FlopCounterMode):
    """Counts as torch's ``FlopCounterMode``, and products that it takes to be free.

    Those are attention and recurrent layers of any kernel, products with vectors, sums of products
    of matrices, products in place, and bilinear layers.

    ``multiply_adds`` lists the counted operations in order of execution. ``foreign`` is the number
    of operators that ran and are not PyTorch's own: on shapes alone, they may check nothing.
    """

    def __init__(self) -> None:
        formulas = dict.fromkeys(ATTENTION, _attend) | dict.fromkeys(RECURRENT, _recur)
        formulas |= dict.fromkeys(("mv", "dot", "vdot", "addmv", "addmv_"), _times_vector)
        formulas |= dict.fromkeys(("addbmm", "addbmm_", "addmm_", "baddbmm_"), _add_products)
        formulas |= {"_trilinear": _multiply_three}
        found = {getattr(torch.ops.aten, name, None): each for name, each in formulas.items()}
        found.pop(None, None)
        super().__init__(display=False, custom_mapping=found)
        self.mod_tracker = _ForwardTracker()
        self.multiply_adds: list[int] = []
        self.foreign = 0

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        name = getattr(func_packet, "_qualified_op_name", "aten::")
        self.foreign += not name.startswith(("aten::", "prim"))
        if formula := self.flop_registry.get(func_packet):
            self.multiply_adds.append(formula(*args, **kwargs, out_val=out) // 2)
        return super()._count_flops(func_packet, out, args, kwargs)


class _ForwardTracker(ModuleTracker):
    """Follows which modules run, in forward passes alone.

    Torch's asks their inputs for gradients, which views of parameters refuse without autograd.
    """

    def _fw_pre_hook(self, mod: Any, input: Any) -> None:
        self._get_append_fn(self._get_mod_name(mod), False)()

    def _fw_post_hook(self, mod: Any, input: Any, output: Any) -> None:
        self._get_pop_fn(self._get_mod_name(mod), False)()


@contextmanager
def causal_masks_unread() -> Iterator[None]:
    """A context in which transformers of torch do not read whether their mask is causal.

    They may then be slower, but return the same.
    """
    transformer: Any = nn.modules.transformer
    read = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = _given_causal
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = read


def _given_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return bool(is_causal)


def _attend(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _recur(sequences: Any, first: Any, second: Any, *args: Any, **kwargs: Any) -> int:
    """Each matrix multiplies a vector at each step of each sequence."""
    weights = [first, second] if isinstance(first, torch.Size) else first
    return 2 * prod(sequences[:-1]) * sum(prod(each) for each in weights if len(each) == 2)


def _times_vector(*shapes: Any, **kwargs: Any) -> int:
    """Of a matrix, or a vector, and a vector; a sum that they are added to comes first."""
    return 2 * prod(shapes[-2])


def _add_products(added: Any, first: Any, second: Any, **kwargs: Any) -> int:
    return 2 * prod(first) * second[-1]


def _multiply_three(*args: Any, **kwargs: Any) -> int:
    """Each number of the product of three tensors, which are made alike by axes of one sample."""
    shapes = [list(shape) for shape in args[:3]]
    for shape, axes in zip(shapes, args[3:6], strict=True):
        for axis in sorted(axes):
            shape.insert(axis, 1)
    return 2 * prod(map(max, *shapes))
