"""Registers networks, layers, data, transforms, optimisers and schedules with Gin, when imported.

The library itself does not use Gin. Parts that it builds inside a call, such as the `Resnet` that
`resnet18` returns and its batch norms, are replaced by their registered versions during the call.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gin
import torch
from torchvision.transforms import v2

from diffstride import convnet, pooling, reference, resnet
from diffstride.training import augment, data, schedules, sound
from diffstride.training.argument_types import argument_kinds, check_argument, fits
from diffstride.training.gin_compat import bound_values
from diffstride.training.run import train as _train
from diffstride.training.run_folder import by_gin

NAMES: dict[str, list[str]] = {}
"""Registered names, as ``module.name``, with the arguments that may be bound."""

KINDS: dict[str, dict[str, Any]] = {}
"""The annotations of the arguments of registered names."""


def register(
    target: Callable[..., Any], module: str, *, name: str = "", given: Iterable[str] = ()
) -> Callable[..., Any]:
    """Register ``target`` with Gin; the arguments ``given`` by the program cannot be bound."""
    name = name or target.__name__
    # The constructor of a class: wrappers of some torch classes hide the arguments.
    signature = inspect.signature(target.__init__ if isinstance(target, type) else target)
    arguments = [argument for argument in signature.parameters if argument != "self"]
    denied = [argument for argument in given if argument in arguments]
    KINDS[f"{module}.{name}"] = argument_kinds(target)
    NAMES[f"{module}.{name}"] = [argument for argument in arguments if argument not in denied]
    with gin.unlock_config():  # by a configuration that was read before this module was needed
        return gin.external_configurable(target, name=name, module=module, denylist=denied)


_ONE_THREAD = threading.RLock()  # another thread would restore what the first has replaced


def check_bindings() -> None:
    """Refuse bound values of a type that the annotation of their argument excludes.

    And those of a function that `load_datasets` gets by its name, which is none of Gin's.

    Raises:
        ValueError: there is one; names the argument, the value, and what was expected.
    """
    bound = list(bound_values())
    for name, argument, value in bound:
        if name == "data.load_datasets" and argument in BY_NAME and isinstance(value, str):
            _check_has_no_bindings(argument, value, [other for other, *_ in bound])
        kind = KINDS.get(name, {}).get(argument, Any)
        if isinstance(value, str) and not fits(value, kind) and (found := references(value)):
            raise ValueError(
                f"{name}.{argument} = {value!r} is text, but should be a function or class: "
                f"write {' or '.join(found)} without quotes"
            )
        check_argument(f"{name}.{argument}", value, kind)


BY_NAME = {"augment_fn": augment.AUGMENTATIONS, "sound_fn": sound.SOUND_FUNCTIONS}
"""The functions that `load_datasets` takes by their names, by argument."""


def _check_has_no_bindings(argument: str, value: str, bound: Iterable[str]) -> None:
    function: Any = BY_NAME[argument].get(value)
    if function is None:
        return  # `load_datasets` refuses the name
    (found,) = references(function.__name__)
    if found[1:] in bound:
        raise ValueError(
            f"arguments of {found[1:]} are bound, but have no effect, as data.load_datasets."
            f"{argument} = {value!r} is a name: bind {found} to it"
        )


def references(name: str) -> list[str]:
    """How a registered function or class is referred to; a name may lack its first words.

    >>> references("DiffStride"), references("@resnet18"), references("digits")
    (['@pooling.DiffStride', '@reference.DiffStride'], ['@resnet.resnet18'], [])
    """
    name = name.removeprefix("@").removesuffix("()")
    return [f"@{each}" for each in NAMES if f".{each}".endswith(f".{name}")]


@contextmanager
def _replaced(module: Any, replacements: dict[str, Any]) -> Iterator[None]:
    with _ONE_THREAD:
        originals = {name: getattr(module, name) for name in replacements}
        vars(module).update(replacements)
        try:
            yield
        finally:
            vars(module).update(originals)


def _register_network(
    build: Callable[..., Any], space: Any = resnet, given: Iterable[str] = (), **inner: Any
) -> Callable[..., Any]:
    """Register ``build``; during its calls ``inner`` replaces these names in module ``space``.

    Further arguments of ``build``, but for those ``given`` by it, are those of `resnet.Resnet`.
    """

    @functools.wraps(build)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _replaced(space, inner):
            return build(*args, **kwargs)

    # Gin checks argument names against this signature, where there is no wrapped function.
    del vars(call)["__wrapped__"]
    vars(call)["__signature__"] = _with_passed_on(inspect.signature(build), given)
    return register(call, space.__name__.rpartition(".")[2])


def _with_passed_on(signature: inspect.Signature, given: Iterable[str]) -> inspect.Signature:
    """A signature with the arguments of `resnet.Resnet` in place of ``kwargs``.

    They have no defaults, which Gin would write into the operative configuration and bind from it.
    """
    own = dict(signature.parameters)
    if own.pop("kwargs", None) is None:
        return signature
    for name, each in inspect.signature(resnet.Resnet).parameters.items():
        if name not in own and name not in given:
            own[name] = each.replace(kind=each.KEYWORD_ONLY, default=each.empty)
    return signature.replace(parameters=list(own.values()))


def _register_all(space: Any, base: type, given: Iterable[str], unsupported: Iterable[str]) -> None:
    """Register all public subclasses of ``base`` in module ``space``."""
    for name, member in vars(space).items():
        own = isinstance(member, type) and issubclass(member, base) and not name.startswith("_")
        if own and name not in unsupported:
            more = ["total_iters"] * schedules.is_polynomial(member)
            register(member, space.__name__, given=[*given, *more])


batch_norm = register(resnet.batch_norm, "resnet", given=["channels", "num_axes"])
Resnet = _register_network(resnet.Resnet, batch_norm=batch_norm)
SET_BY_RESNET18 = ("filters", "id_only", "num_layers", "kernel_size")
SET_BY_RESNET56 = ("filters", "num_layers", "kernel_size")
resnet18 = _register_network(resnet.resnet18, given=SET_BY_RESNET18, Resnet=Resnet)
resnet56 = _register_network(resnet.resnet56, given=SET_BY_RESNET56, Resnet=Resnet)
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

load_datasets = register(data.load_datasets, "data", given=["seed"])  # the seed of the training
PARTS_OF_AUGMENTATIONS = augment.gain_and_noise, augment.gain_of_log_mel, augment.mask
for augmentation in (*augment.AUGMENTATIONS.values(), *PARTS_OF_AUGMENTATIONS):
    batch = next(iter(inspect.signature(augmentation).parameters))
    register(augmentation, "augment", given=[batch, "generator"])
for sound_function in (sound.log_mel, sound.waveform):
    register(sound_function, "sound", given=["sound", "rate"])
register(augment.per_image, "augment")
# Two need a batch and its labels; per_image stands for Lambda.
_register_all(v2, v2.Transform, [], ["Transform", "CutMix", "MixUp", "Lambda"])

register(schedules.multi_step, "schedules", given=["optimizer"])
# Weight decay is that of train.weight_decay, on kernels only.
_register_all(
    torch.optim,
    torch.optim.Optimizer,
    ["params", "weight_decay"],
    # The base class; the others need one group, only matrices, sparse gradients.
    ["Optimizer", "LBFGS", "Muon", "SparseAdam"],
)
_register_all(
    torch.optim.lr_scheduler,
    torch.optim.lr_scheduler.LRScheduler,
    ["optimizer", *schedules.FROM_RUN],
    ["LRScheduler", *schedules.UNSUPPORTED],
)


@functools.wraps(_train)
def _train_by_gin(*args: Any, **kwargs: Any) -> Any:
    before = by_gin.set(True)
    try:
        return _train(*args, **kwargs)
    finally:
        by_gin.reset(before)


# Gin checks argument names against it.
vars(_train_by_gin)["__signature__"] = inspect.signature(_train)

train = register(
    functools.partial(_train_by_gin, model=resnet18, datasets=load_datasets), "train", name="train"
)
