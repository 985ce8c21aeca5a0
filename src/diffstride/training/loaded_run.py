"""`load_run`: the trained network of a run folder, with what its images or sounds need."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffstride.training import gin_registry
from diffstride.training.augment_per_image import name_of
from diffstride.training.checkpoints import CHECKPOINTS, weights
from diffstride.training.command_line import configure
from diffstride.training.files import expand_home
from diffstride.training.gin_compat import bound_values
from diffstride.training.network import model_arguments
from diffstride.training.run_folder import CONFIG
from diffstride.training.run_summary import SUMMARY, read_summary
from diffstride.training.sound import SoundFunction, find_sound_function

Model = Callable[..., nn.Module] | nn.Module


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, and what its images or sounds need.

    Args:
        network: the network in evaluation mode, on the CPU: from normalised images
            ``(B, C, H, W)``, or sounds ``(B, C, …)``, to logits ``(B, classes)``.
        class_names: the names of the classes, in the order of the logits.
        image_shape: channels, height and width of the training images; of sounds, the shape of
            what ``sound_fn`` returns.
        mean: mean of each channel of the training images, of values from 0 to 1, or sounds.
        std: standard deviation of each channel.
        summary: the content of ``summary.json``.
        sounds: whether the network was trained on sounds.
        sound_fn: what makes a tensor of a mono recording and its sampling rate, with the arguments
            of the training. None for images, and where ``model`` was passed: call your own.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    summary: dict[str, Any]
    sounds: bool = False
    sound_fn: SoundFunction | None = None

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images or sounds as those of the training.

        Args:
            images: uint8, from 0 to 255, of shape ``(B, C, H, W)``; of a run on sounds, what
                ``sound_fn`` returns, stacked: floating-point, of shape ``(B, C, …)``.

        Returns:
            A float32 tensor of the same shape.

        Raises:
            ValueError: they are of another kind, or have another number of axes or channels.
        """
        self._check(images)
        each_channel = (-1, *[1] * (images.ndim - 2))
        mean, std = (each.to(images.device).view(each_channel) for each in (self.mean, self.std))
        return (images.float() / (1 if self.sounds else 255) - mean) / std

    def _check(self, images: Tensor) -> None:
        right_type = images.is_floating_point() if self.sounds else images.dtype == torch.uint8
        channels, axes = len(self.mean), len(self.image_shape)
        if right_type and images.ndim == axes + 1 and images.shape[1] == channels:
            return
        got = f"{images.dtype} of shape {tuple(images.shape)}"
        if self.sounds:
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"sounds must be floating-point of shape (B, {shape}), but got {got}: pass what "
                "the sound_fn of the run makes of a recording, and [None] for a batch of one"
            )
        raise ValueError(
            f"images must be uint8 of shape (B, {channels}, H, W), but got {got}: give them from "
            "0 to 255, with the channels first"
        )


def load_run(folder: str | Path, model: Model | None = None) -> LoadedRun:
    """Load the trained network of a finished run.

    The weights are those after the last epoch. The network is built as the Gin configuration in
    the run folder says. That configuration is code: load only runs that you trust. It replaces
    what Gin has bound in this process.

    Args:
        folder: the run folder (``workdir``) of `train` or of the command.
        model: what `train` got as ``model``. Needed for runs that were not started by a Gin
            configuration. A network gets the trained weights.

    Returns:
        The network in evaluation mode, with class names and the normalisation of its images, or
        sounds.

    Raises:
        ValueError: the folder holds no finished run, none of its checkpoints fits the network, or
            ``model`` is missing.

    >>> run = load_run("runs/digits")  # doctest: +SKIP
    >>> logits = run.network(run.normalize(images))  # doctest: +SKIP
    """
    folder = expand_home(folder)
    summary = read_summary(folder) if folder.is_dir() else None
    if summary is None:
        raise ValueError(_no_run(folder))
    if "image_shape" not in summary:
        raise ValueError(
            f"{folder} is of a version that did not save the classes and what their images need: "
            "train it again"
        )
    classes, image_shape = tuple(summary["class_names"]), tuple(summary["image_shape"])
    used_sound_fn, sound_fn = summary["settings"].get("sound_fn"), None
    if model is None:
        model = _configured_model(folder)
        sound_fn = _configured_sound_function(used_sound_fn) if used_sound_fn else None
    if not isinstance(model, nn.Module):
        model = model(**model_arguments(len(classes), image_shape))
    model.load_state_dict(weights(folder / CHECKPOINTS, model, summary["epochs"]))
    mean, std = (torch.tensor(summary[name]) for name in ("mean", "std"))
    sounds = used_sound_fn is not None
    return LoadedRun(model.eval(), classes, image_shape, mean, std, summary, sounds, sound_fn)


def _no_run(folder: Path) -> str:
    """Why there is no finished run in a folder, and what to give instead."""
    expected = "expected a run folder, the workdir of a training"
    for outer in folder.parents[:2]:  # of a checkpoint, or of the folder of the checkpoints
        if (outer / SUMMARY).is_file():
            return f"{folder} is in the run folder {outer}: {expected}; give {str(outer)!r}"
    if not folder.exists():
        return f"{folder} does not exist: {expected}; check the path"
    if not folder.is_dir():
        return f"{folder} is a file: {expected}; give the folder, which has a {SUMMARY}"
    return (
        f"{folder} holds no finished run, as it has no {SUMMARY}: give the workdir of a run, and "
        "let the command that started it finish it"
    )


def _configured_model(folder: Path) -> Callable[..., nn.Module]:
    config = folder / CONFIG
    if not config.exists():
        raise ValueError(
            f"{folder} does not say how its network is built, as it was not started by a Gin "
            "configuration: pass model, as to train"
        )
    configure([str(config)])
    for name, argument, value in bound_values():
        if (name, argument) == ("train.train", "model"):
            return value
    return gin_registry.resnet18  # the default of train, which Gin does not write


def _configured_sound_function(used: str) -> SoundFunction | None:
    """The bound function, with its bound arguments: another configuration does not change them.

    None if its name is not the one that the training used, as of one that Gin makes by a call.
    """
    bound = list(bound_values())
    given = [value for name, argument, value in bound if argument == "sound_fn"]
    function = find_sound_function(given[0] if given else None)
    if name_of(function) != used:
        return None
    if not given or not callable(given[0]):
        return function  # Gin binds no arguments of functions that are given by their names
    own = {argument: value for name, argument, value in bound if f".{name}".endswith(f".{used}")}
    # Without Gin, which would take these arguments for ones that overrule its own.
    return partial(getattr(function, "__wrapped__", function), **own)
