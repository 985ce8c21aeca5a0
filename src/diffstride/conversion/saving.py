"""Save converted and frozen networks in one file, with the recipe that rebuilds them."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffstride._arguments import check_network
from diffstride._files import atomic_file
from diffstride._torch_compat import unwrapped
from diffstride._wording import one_line
from diffstride.conversion.network_copies import Model
from diffstride.conversion.placement import has_own_kernel
from diffstride.conversion.pooled_module import Pooled
from diffstride.conversion.rebuilding import rebuild
from diffstride.conversion.recipes import Recipe, recipe

KEY = "diffstride"
STATE = "state_dict"
SAFETENSORS = ".safetensors"


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a converted or frozen network: its weights, strides and `recipe`, in one file.

    A name that ends with ``.safetensors`` makes a file of that format, with the recipe in its
    metadata; it needs the package safetensors. All others make one that
    ``torch.load(path, weights_only=True)`` reads: ``{"diffstride": recipe, "state_dict": …}``.
    A file of that name is replaced once the new one is complete.

    Args:
        model: the network, or one with converted or frozen parts.
        path: the file; its folder is created.

    Raises:
        TypeError: if ``model`` is no network, or ``path`` no path.
        ValueError: if no part was converted or frozen, or a kernel was resampled and parametrised
            since; as of `recipe`.
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> from diffstride import convert
    >>> def build():
    ...     return nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
    >>> path = Path(tempfile.mkdtemp()) / "net.pt"
    >>> save(convert(build(), torch.zeros(1, 8, 32, 32)), path)
    >>> load(build(), path)[0].pooling.stride_values()
    (2.0, 2.0)
    """
    _check_arguments("save", model, path)
    model, path = unwrapped(model), Path(path)
    made = recipe(model)
    _check_kernels(model)
    state = model.state_dict()
    with atomic_file(path, several=True) as file:
        if path.suffix == SAFETENSORS:
            file.write(_as_safetensors(path, state, {KEY: json.dumps(made)}))
        else:
            torch.save({KEY: made, STATE: state}, file)


def load(
    model: Model,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
) -> Model:
    """Load a network that `save` has written.

    Args:
        model: a freshly built network, as before its conversion; its weights do not matter. It is
            not changed.
        path: the file.
        strict: whether all names in the file and in the network have to agree, as for
            ``load_state_dict``.

    Returns:
        A copy of ``model``, converted or frozen, with the weights and strides of the file, in the
        mode, dtype and device of ``model``.

    Raises:
        TypeError: if ``model`` is no network, or ``path`` no path.
        ValueError: if the file has no recipe, or the network differs from the saved one; as of
            `rebuild`.
        RuntimeError: if weights are missing or unknown, as of ``load_state_dict``, or of another
            shape, as in a last layer for another number of classes.
    """
    _check_arguments("load", model, path)
    made, state = _read(Path(path))
    network = rebuild(model, made)
    try:
        network.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        if different := _other_shapes(state, network.state_dict()):
            raise RuntimeError(
                f"{str(path)!r} holds weights of another shape: {', '.join(different)}. Build the "
                "network as it was saved, with the same number of classes, and replace layers, "
                "such as the last one, after load"
            ) from error
        raise
    return network


def _check_kernels(model: nn.Module) -> None:
    """Refuse a network that `load` could not build: no parametrised kernel is resampled."""
    for name, module in model.named_modules():
        if isinstance(module, Pooled) and module.taps and not has_own_kernel(module):
            part = "bias" if "weight" in module._parameters else "kernel"
            raise ValueError(
                f"the {part} of {name!r} was parametrised after convert, so that load cannot build "
                "the network: save diffstride.recipe(model) and model.state_dict(), and "
                "parametrise what diffstride.rebuild(network, recipe) returns likewise before its "
                "load_state_dict, or remove the parametrisation before save"
            )


def _other_shapes(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Texts on the tensors of two networks that have one name and different shapes."""
    pairs = {name: (found[name], each) for name, each in expected.items() if name in found}
    shapes = {
        name: [tuple(each.shape) for each in pair]
        for name, pair in pairs.items()
        if all(isinstance(each, torch.Tensor) for each in pair)
    }
    return [
        f"{name} is {there} there and {here} in this one"
        for name, (there, here) in shapes.items()
        if there != here
    ]


def _check_arguments(function: str, model: Any, path: Any) -> None:
    """Refuse a network in place of a path, mostly of swapped arguments."""
    if isinstance(path, nn.Module):
        raise TypeError(
            f"path must be the name of a file, but got a {type(path).__name__}: pass the network "
            f"first, as in {function}(model, 'net.pt')"
        )
    check_network(model)


def _read(path: Path) -> tuple[Recipe, dict[str, Any]]:
    if path.suffix == SAFETENSORS:
        with _safetensors(path).safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = {KEY: json.loads(metadata[KEY]), STATE: state} if KEY in metadata else state
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or KEY not in found:
        raise ValueError(
            f"{str(path)!r} has no recipe, so diffstride.save has not written it: convert a "
            "network as before, and pass what torch.load returns to its load_state_dict"
        )
    return found[KEY], found[STATE]


def _as_safetensors(path: Path, state: dict[str, Any], metadata: dict[str, str]) -> bytes:
    dense = {name: value.contiguous() for name, value in state.items()}
    try:
        return _safetensors(path).torch.save(dense, metadata)
    except RuntimeError as error:  # tensors that share memory, as tied weights do
        raise ValueError(
            f"{path.name!r} failed ({one_line(error)}): choose a name that ends with .pt"
        ) from error


def _safetensors(path: Path) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{path.name!r} needs the package safetensors: pip install safetensors, or choose a "
            "name that ends with .pt"
        ) from error
    return safetensors
