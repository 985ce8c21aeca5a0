"""`load_run`: the trained network of a run folder, with what its images need."""

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
from diffstride.training.run_summary import read_summary

Model = Callable[..., nn.Module] | nn.Module


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, and what its images need.

    Args:
        network: the network in evaluation mode, on the CPU: from normalised images
            ``(B, C, H, W)`` to logits ``(B, classes)``.
        class_names: the names of the classes, in the order of the logits.
        image_shape: channels, height and width of the training images.
        mean: mean of each channel of the training images, of values from 0 to 1.
        std: standard deviation of each channel.
        summary: the content of ``summary.json``.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    summary: dict[str, Any]

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images as those of the training.

        Args:
            images: uint8, from 0 to 255, of shape ``(B, C, H, W)``.

        Returns:
            float32 images of the same shape.

        Raises:
            ValueError: the images are not uint8, or have another number of channels.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"images must be uint8 of shape (B, {len(self.mean)}, H, W), but got "
                f"{images.dtype} of shape {tuple(images.shape)}: give them from 0 to 255, with "
                "the channels first"
            )
        mean, std = (each.to(images.device)[:, None, None] for each in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


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
        The network in evaluation mode, with class names and the normalisation of its images.

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
    facts = summary["settings"]
    classes, image_shape = tuple(summary["class_names"]), tuple(facts["images"][1:])
    model = _configured_model(folder) if model is None else model
    if not isinstance(model, nn.Module):
        model = model(num_output_classes=len(classes), in_channels=image_shape[0])
    model.load_state_dict(weights(folder / CHECKPOINTS, model))
    mean, std = (torch.tensor(facts[name]) for name in ("mean", "std"))
    return LoadedRun(model.eval(), classes, image_shape, mean, std, summary)


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
