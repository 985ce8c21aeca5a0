"""Where the pooling of a converted module goes: before it, after it, or on top of its stride.

``"after"`` runs the module at stride 1 and pools its output: exact, but costly. ``"before"`` pools
the input and resamples the kernel to the coarse grid (`diffstride.conversion.kernel_resampling`),
at the cost of the strided convolution. It is exact for pointwise ones, which are always placed so.
``"on top"`` leaves the module its stride and pools its output by a layer that starts at 1: exact,
but the old stride stays.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from diffstride._torch_compat import Conv
from diffstride.conversion.stride_measurement import convolves
from diffstride.conversion.strided_call import StridedCall
from diffstride.graph.tracer import Trace

Order = Literal["auto", "before", "after"]
ORDERS: tuple[Order, ...] = get_args(Order)


def check_order(order: str) -> None:
    """Refuse any ``order`` that is not in `ORDERS`."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, but got {order!r}")


def place(calls: Sequence[StridedCall], trace: Trace, order: str, min_channels: int) -> None:
    """Set the placement of each call; where calls share a layer, `group_calls` may change it.

    Args:
        calls: the calls of strided modules.
        trace: of the network.
        order: as for `diffstride.convert`.
        min_channels: likewise.
    """
    users = _users_of_weights(trace)
    uses = Counter(call.module for call in calls)
    for call in calls:
        conv = call.module
        call.only_after = "" if call.pointwise else _why_only_after(conv, users)
        if call.pointwise:
            call.placement = "before"
        elif order == "after" or call.only_after:
            call.placement = "after"
        elif order == "before":
            call.placement = "before"
        elif call.patchifies or not call.fits_coarse_grid:
            call.placement = "after"
        else:
            few = getattr(conv, "in_channels", 0) < min_channels and uses[conv] == 1
            call.placement = "on top" if few else "before"


def _why_only_after(module: nn.Module, users: Mapping[int, int]) -> str:
    """Why the kernel of a module cannot be resampled, empty if it can."""
    if not isinstance(module, Conv):
        return "it is no convolution"
    if not convolves(module):
        return "its class has a forward of its own"
    if not has_own_kernel(module):
        return "its kernel is parametrised or computed by a hook"
    return "its kernel is used elsewhere, too" if users[id(module.weight)] > 1 else ""


def _users_of_weights(trace: Trace) -> Counter[int]:
    """How many modules hold each parameter, and how often the network reads it by itself."""
    parameters = dict(trace.model.named_parameters(remove_duplicate=False))
    read = [str(node.target) for node in trace.graph.nodes if node.op == "get_attr"]
    users = Counter(id(parameters[name]) for name in read if name in parameters)
    users.update(id(w) for module in trace.model.modules() for w in module._parameters.values())
    return users


def has_own_kernel(module: nn.Module) -> bool:
    """Whether a convolution has its kernel as a parameter, which can be resampled."""
    # Not computed by a hook, as that of the old `weight_norm`, nor by a parametrisation.
    return "weight" in module._parameters and not is_parametrized(module)
