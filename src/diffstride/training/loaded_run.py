"""`load_run`: the trained network of a run folder, with what its images or sounds need."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffstride.training.checkpoints import CHECKPOINTS, weights
from diffstride.training.command_line import configure
from diffstride.training.files import expand_home
from diffstride.training.gin_compat import bound_values
from diffstride.training.network import model_arguments
from diffstride.training.run_summary import read_summary

Model = Callable[..., nn.Module] | nn.Module


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, and what its images or sounds need.

    Args:
        network: the network in evaluation mode, on the CPU: from normalised images
            ``(B, C, H, W)``, or results of ``sound_fn``, to logits ``(B, classes)``.
        class_names: the names of the classes, in the order of the logits.
        image_shape: channels, height and width of the training images; for sounds the shape of one
            result of ``sound_fn``.
        mean: mean of each channel of the training images, of values from 0 to 1; for sounds of the
            results of ``sound_fn``.
        std: standard deviation of each channel.
        summary: the content of ``summary.json``.
        sound: whether the run was trained on sounds.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    summary: dict[str, Any]
    sound: bool = False

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images or sounds as those of the training.

        Args:
            images: uint8, from 0 to 255, of shape ``(B, C, H, W)``; of a run on sounds a batch of
                results of ``sound_fn``, such as ``(B, 1, N)``.

        Returns:
            float32 images or sounds of the same shape.

        Raises:
            ValueError: the images are not uint8, sounds are not floating-point, or they have
                another number of axes or channels.
        """
        is_kind = images.is_floating_point() if self.sound else images.dtype == torch.uint8
        axes = len(self.image_shape)
        if not is_kind or images.ndim != axes + 1 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"{self._expected()}, but got {images.dtype} of shape {tuple(images.shape)}"
            )
        each_channel = (-1, *[1] * (axes - 1))
        mean, std = (each.to(images.device).view(each_channel) for each in (self.mean, self.std))
        return (images.float() / (1 if self.sound else 255) - mean) / std

    def _expected(self) -> str:
        channels = len(self.mean)
        if not self.sound:
            return f"images must be uint8, from 0 to 255, of shape (B, {channels}, H, W)"
        size = ", ".join(map(str, self.image_shape[1:]))
        return (
            f"sounds must be results of {self.summary['settings']['sound_fn']}, floating-point of "
            f"shape (B, {channels}, {size})"
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
        The network in evaluation mode, with class names and the normalisation of its images or
        sounds.

    Raises:
        ValueError: the folder holds no finished run, none of its checkpoints fits the network, or
            ``model`` is missing.

    >>> run = load_run("runs/digits")  # doctest: +SKIP
    >>> logits = run.network(run.normalize(images))  # doctest: +SKIP
    """
    folder = expand_home(folder)
    summary = read_summary(folder)
    if summary is None:
        raise ValueError(
            f"{folder} holds no finished run, as it has no summary.json: give the workdir of a "
            "run, and let the command that started it finish it"
        )
    if "class_names" not in summary:
        raise ValueError(
            f"{folder} is of a version that did not save the names of the classes: train it again"
        )
    facts = summary["settings"] | summary  # older summaries have the statistics as settings only
    classes = tuple(summary["class_names"])
    image_shape = tuple(facts.get("image_shape") or facts["images"][1:])
    model = _configured_model(folder) if model is None else model
    if not isinstance(model, nn.Module):
        model = model(**model_arguments(len(classes), image_shape))
    model.load_state_dict(weights(folder / CHECKPOINTS, model))
    mean, std = (torch.tensor(facts[name]) for name in ("mean", "std"))
    is_sound = "sound_fn" in summary["settings"]
    return LoadedRun(model.eval(), classes, image_shape, mean, std, summary, is_sound)


def _configured_model(folder: Path) -> Callable[..., nn.Module]:
    config = folder / "operative_config.gin"
    if config.exists():
        configure([str(config)])
        for name, argument, value in bound_values():
            if f"train.{name}".endswith("train.train") and argument == "model":
                return value
    raise ValueError(
        f"{folder} does not say how its network is built, as it was not started by a Gin "
        "configuration: pass model, as to train"
    )
