"""Networks of torchvision and timm by name, with random weights."""

import inspect
import warnings
from typing import Any

from torch import nn

from diffstride._wording import suggest

EXAMPLES = "torchvision/resnet18 or timm/regnety_002"
INITIALISED_SLOWLY = ("googlenet", "inception_v3")


def build_network(name: str, channels: int = 3) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: ``LIBRARY/NAME``, with ``torchvision`` or ``timm`` as the library.
        channels: of the images. Networks of torchvision have 3.

    Raises:
        ModuleNotFoundError: the library is not installed.
        ValueError: the library has no such network, or cannot build it for these channels.

    >>> type(build_network("torchvision/resnet18")).__name__
    'ResNet'
    >>> build_network("torchvision/resnet19")
    Traceback (most recent call last):
    ValueError: torchvision has no network 'resnet19'; did you mean 'resnet18'?
    """
    library, _, model = name.partition("/")
    if library not in BUILDERS or not model:
        raise ValueError(f"{name!r} names no network: give LIBRARY/NAME, such as {EXAMPLES}")
    try:
        return BUILDERS[library](model, channels)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ModuleNotFoundError(
            f"{name} needs {library}, which is not installed: pip install {library}", name=library
        ) from error


def _torchvision(name: str, channels: int) -> nn.Module:
    from torchvision import models

    _check_name("torchvision", name, models.list_models())
    if channels != 3:
        raise ValueError(
            f"torchvision/{name} takes images of 3 channels, not {channels}: use 3, or a network "
            "of timm"
        )
    arguments = inspect.signature(models.get_model_builder(name)).parameters
    options: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in arguments else {}
    if name in INITIALISED_SLOWLY:
        options["init_weights"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated names inside torchvision
        return models.get_model(name, weights=None, **options)


def _timm(name: str, channels: int) -> nn.Module:
    import timm

    _check_name("timm", name.partition(".")[0], timm.list_models())
    return timm.create_model(name, pretrained=False, in_chans=channels)


BUILDERS = {"torchvision": _torchvision, "timm": _timm}


def _check_name(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"{library} has no network {name!r}{suggest(name, known)}")
