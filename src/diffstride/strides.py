"""Helpers for the strides of a network: list, project, log, penalise, parameter groups."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffstride._arguments import check_network
from diffstride._torch_compat import has_hooks

AXIS_SUFFIXES = {1: ("",), 2: ("/height", "/width"), 3: ("/depth", "/height", "/width")}


if TYPE_CHECKING:

    class StrideLayer(nn.Module):
        """What is known of a layer with learnable strides, here or in `diffstride.reference`."""

        strides: nn.Parameter

        def stride_values(self) -> tuple[float, ...]: ...

        def project_(self) -> None: ...


def stride_layers(model: nn.Module) -> "dict[str, StrideLayer]":
    """The layers of a model that have learnable strides, by name.

    >>> from diffstride import DiffStride
    >>> list(stride_layers(nn.Sequential(nn.ReLU(), DiffStride())))
    ['1']
    """
    check_network(model)
    modules: dict[str, Any] = dict(model.named_modules())
    return {
        name: module
        for name, module in modules.items()
        if hasattr(module, "project_") and isinstance(getattr(module, "strides", 0), nn.Parameter)
    }


def project_strides(model: nn.Module) -> None:
    """Clamp all learnable strides of a model to their limits; call after every optimiser step.

    >>> from diffstride import DiffStride
    >>> pool = DiffStride((2.0, 2.0), upper_limit_stride=3.0)
    >>> _ = pool.strides.data.fill_(9.0)
    >>> project_strides(nn.Sequential(pool))
    >>> pool.strides.tolist()
    [3.0, 3.0]
    """
    for layer in stride_layers(model).values():
        layer.project_()


def stride_scalars(model: nn.Module) -> dict[str, float]:
    """All learnable strides of a model as named numbers, for a logger.

    >>> from diffstride import DiffStride
    >>> stride_scalars(nn.Sequential(DiffStride((2.0, 3.0))))
    {'stride/0/height': 2.0, 'stride/0/width': 3.0}
    """
    scalars = {}
    for name, layer in stride_layers(model).items():
        values = layer.stride_values()
        for axis, value in zip(AXIS_SUFFIXES[len(values)], values, strict=True):
            scalars[f"stride/{name}{axis}"] = value
    return scalars


class StepHooks:
    """Calls of functions before and after each step of an optimiser; `remove` takes them off."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        strides: Sequence[Tensor],
        before: Callable[[], object] | None,
        after: Callable[[], object],
    ) -> None:
        check_optimizer(optimizer)

        def call(function: Callable[[], object]) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                function()

            return hook

        if not has_hooks(optimizer):
            raise TypeError(
                f"a {type(optimizer).__name__} has no hooks of its own: attach to the optimiser "
                "inside it (accelerate's optimizer.optimizer), or project by hand after each step "
                "if it changes parameters itself"
            )
        _check_holds(optimizer, strides)
        self.handles = [optimizer.register_step_post_hook(call(after))]
        self.removed = False
        if before is not None:
            self.handles.append(optimizer.register_step_pre_hook(call(before)))

    def remove(self) -> None:
        """Take the hooks off the optimiser."""
        self.removed = True
        for handle in self.handles:
            handle.remove()


def _check_holds(optimizer: torch.optim.Optimizer, strides: Sequence[Tensor]) -> None:
    """Refuse an optimiser that holds none of the strides that it is to move.

    Raises:
        ValueError: if it has none of them.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if strides and held.isdisjoint(map(id, strides)):
        raise ValueError(
            "this optimizer holds none of the network's strides: build it from the parameters of "
            "the network that convert returned (a copy), as with "
            "diffstride.parameter_groups(network, weight_decay)"
        )


def check_optimizer(optimizer: Any) -> None:
    """Refuse anything but an optimiser where one is expected.

    >>> check_optimizer(torch.optim.SGD)
    Traceback (most recent call last):
    TypeError: attach needs a torch.optim.Optimizer, but got the class SGD: pass an optimiser, not
    its class, as in SGD(model.parameters(), lr=0.1)
    """
    if isinstance(optimizer, type):
        name = optimizer.__name__
        got = f"the class {name}: pass an optimiser, not its class, as in "
        got += f"{name}(model.parameters(), lr=0.1)"
    elif not hasattr(optimizer, "register_step_post_hook"):
        got = f"a {type(optimizer).__name__}: pass the optimiser inside it"
    else:
        return
    raise TypeError(f"attach needs a torch.optim.Optimizer, but got {got}")


def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> StepHooks:
    """Have an optimiser call `project_strides` after each step.

    `CostBudget.attach` holds the cost, too, and includes this.

    Args:
        model: any network with learnable strides.
        optimizer: any optimiser; wrappers of other libraries call its ``step``.

    Returns:
        The hooks; ``remove()`` takes them off.

    Raises:
        ValueError: if strides learn, but the optimiser has none of them.

    >>> from diffstride import DiffStride
    >>> pool = DiffStride((2.0, 2.0), upper_limit_stride=2.0)
    >>> optimizer = torch.optim.SGD(pool.parameters(), lr=1.0)
    >>> hooks = attach(pool, optimizer)
    >>> pool.strides.grad = torch.tensor([-1.0, 1.0])
    >>> optimizer.step()
    >>> pool.strides.tolist()
    [2.0, 1.0]
    """
    learned = [layer.strides for layer in stride_layers(model).values()]
    learned = [strides for strides in learned if strides.requires_grad]
    return StepHooks(optimizer, learned, None, lambda: project_strides(model))


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    stride_learning_rate: float | None = None,
    bias_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: no weight decay on biases, norms and strides.

    Kernels, the parameters of two and more dimensions, get the weight decay.

    Args:
        model: any network, with or without learnable strides.
        weight_decay: weight decay of the kernels in the optimiser, at least 0.
        stride_learning_rate: learning rate of the strides; None for that of the optimiser.
        bias_learning_rate: the same for biases and the scales of norms.

    Returns:
        Groups named ``"kernels"``, ``"others"``, ``"strides"``, in this order; each may be empty.

    Raises:
        ValueError: if ``weight_decay`` or a learning rate is not a number of at least 0.

    >>> groups = parameter_groups(nn.Conv2d(3, 8, 3), weight_decay=0.05)
    >>> [(group["name"], len(group["params"]), group["weight_decay"]) for group in groups]
    [('kernels', 1, 0.05), ('others', 1, 0.0), ('strides', 0, 0.0)]
    """
    check_network(model)
    rates = {"others": bias_learning_rate, "strides": stride_learning_rate}
    _check_number("weight_decay", weight_decay)
    for name, rate in (("stride", stride_learning_rate), ("bias", bias_learning_rate)):
        if rate is not None:
            _check_number(f"{name}_learning_rate", rate)
    strides = {id(layer.strides) for layer in stride_layers(model).values()}
    members: dict[str, list[Tensor]] = {"kernels": [], "others": [], "strides": []}
    for parameter in model.parameters():
        kind = "kernels" if parameter.ndim > 1 else "others"
        members["strides" if id(parameter) in strides else kind].append(parameter)
    groups: list[dict[str, Any]] = [
        {"name": name, "params": params, "weight_decay": weight_decay * (name == "kernels")}
        for name, params in members.items()
    ]
    for group in groups:
        if rates.get(group["name"]) is not None:
            group["lr"] = rates[group["name"]]
    return groups


def _check_number(name: str, value: Any) -> None:
    if not (isinstance(value, Real | Tensor) and float(value) >= 0):
        raise ValueError(f"{name} must be a number of at least 0, but got {value!r}")


def stride_penalty(model: nn.Module) -> Tensor:
    """The regulariser of the DiffStride paper, to add to the loss with a weight ``lambda``.

    ``sum over layers l of the product over i <= l of 1 / (S_h^i S_w^i)``, with the layers in the
    order of the model's modules: the memory of all feature maps relative to the input.

    Reference: *Learning Strides in Convolutional Neural Networks*, ICLR 2022, equation 6,
    https://arxiv.org/abs/2202.01653.

    Returns:
        A float32 scalar, differentiable in the strides; 0 for a model without learnable strides.

    >>> from diffstride import DiffStride
    >>> stride_penalty(nn.Sequential(DiffStride((2.0, 2.0)), DiffStride((2.0, 4.0)))).item()
    0.28125
    >>> 1 / 4 + 1 / 4 * 1 / 8
    0.28125
    """
    layers = list(stride_layers(model).values())
    area = torch.ones((), device=layers[0].strides.device if layers else None)
    total = torch.zeros_like(area)
    for layer in layers:
        values = layer.stride_values()
        strides = layer.strides.expand(len(values))
        # The clamped strides, with a straight-through gradient.
        area = area / (strides + (strides.new_tensor(values) - strides.detach())).prod()
        total = total + area
    return total
