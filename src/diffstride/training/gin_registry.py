"""The names that Gin knows: importing this module makes the library configurable.

The library itself does not know of Gin. What it builds inside a call, such as the `Resnet` that
`resnet18` returns and its batch norms, takes part by replacement for the time of the call.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gin
import torch

from diffstride import convnet, pooling, reference, resnet
from diffstride.training import augment, data, schedules
from diffstride.training.run import train as _train

NAMES: dict[str, list[str]] = {}
"""What Gin knows, ``module.name`` of each, and the arguments that may be bound."""


def register(
    target: Callable[..., Any], module: str, *, name: str = "", given: Iterable[str] = ()
) -> Callable[..., Any]:
    """Make ``target`` known to Gin, except for arguments ``given`` by the program."""
    name = name or target.__name__
    # Of a class only the constructor: some of torch's have wrappers that hide the arguments.
    signature = inspect.signature(target.__init__ if isinstance(target, type) else target)
    arguments = [argument for argument in signature.parameters if argument != "self"]
    denied = [argument for argument in given if argument in arguments]
    NAMES[f"{module}.{name}"] = [argument for argument in arguments if argument not in denied]
    return gin.external_configurable(target, name=name, module=module, denylist=denied)


@contextmanager
def _replaced(module: Any, replacements: dict[str, Any]) -> Iterator[None]:
    originals = {name: getattr(module, name) for name in replacements}
    vars(module).update(replacements)
    try:
        yield
    finally:
        vars(module).update(originals)


def _register_network(
    build: Callable[..., Any], space: Any = resnet, **inner: Any
) -> Callable[..., Any]:
    """Register ``build``, during whose calls ``inner`` replaces what ``space`` has of that name."""

    @functools.wraps(build)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _replaced(space, inner):
            return build(*args, **kwargs)

    # Gin checks names of arguments against this, and does not look behind a wrapper by itself.
    vars(call)["__signature__"] = inspect.signature(build)
    return register(call, space.__name__.rpartition(".")[2])


def _register_all(space: Any, base: type, given: Iterable[str], unsuited: Iterable[str]) -> None:
    for name, member in vars(space).items():
        own = isinstance(member, type) and issubclass(member, base) and not name.startswith("_")
        if own and name not in unsuited:
            more = ["total_iters"] * schedules.is_polynomial(member)
            register(member, space.__name__, given=[*given, *more])


batch_norm = register(resnet.batch_norm, "resnet", given=["channels"])
Resnet = _register_network(resnet.Resnet, batch_norm=batch_norm)
resnet18 = _register_network(resnet.resnet18, Resnet=Resnet)
resnet56 = _register_network(resnet.resnet56, Resnet=Resnet)
ConvNet = _register_network(convnet.ConvNet, convnet, batch_norm=batch_norm)
for layer in (
    pooling.DiffStride,
    pooling.FixedSpectralPooling,
    pooling.SpatialPooling,
    pooling.MaxPooling,
    pooling.BlurPooling,
):
    register(layer, "pooling")
for layer in (reference.DiffStride, reference.FixedSpectralPooling):
    register(layer, "reference")

load_datasets = register(data.load_datasets, "data", given=["seed"])  # that of the training
for augmentation in (augment.crop_and_flip, augment.random_crop, augment.flip):
    register(augmentation, "augment", given=["images", "generator"])

register(schedules.multi_step, "schedules", given=["optimizer"])
# The decay is train.weight_decay, of the kernels alone.
_register_all(
    torch.optim,
    torch.optim.Optimizer,
    ["params", "weight_decay"],
    ["LBFGS", "Muon", "SparseAdam"],  # which take no groups, matrices alone, or sparse gradients
)
_register_all(
    torch.optim.lr_scheduler,
    torch.optim.lr_scheduler.LRScheduler,
    ["optimizer", *schedules.KNOWN],
    schedules.UNSUITED,
)

train = register(
    functools.partial(_train, model=resnet18, datasets=load_datasets), "train", name="train"
)
