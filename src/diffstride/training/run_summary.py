"""The summary of a finished run: ``summary.json``, pictures and text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from diffstride._files import atomic_file
from diffstride._stride_text import strides_text
from diffstride._wording import counted
from diffstride.plots import (
    Trajectories,
    plot_stride_trajectories,
    plot_windows,
    read_trajectories,
)
from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.strides import stride_layers

SUMMARY = "summary.json"


def layer_strides(network: nn.Module) -> dict[str, list[float]]:
    """The learnable strides of each layer, by name."""
    layers = stride_layers(network)
    return {name: list(layer.stride_values()) for name, layer in layers.items()}  # pyright: ignore


def save_summary(
    workdir: Path, summary: Mapping[str, Any], network: nn.Module, image_shape: tuple[int, ...]
) -> None:
    """Write ``summary.json`` and the pictures of stride trajectories and windows."""
    draw(network, image_shape, read_trajectories(workdir / "metrics.csv"), workdir)
    with atomic_file(workdir / SUMMARY) as file:
        file.write(json.dumps(summary, indent=2).encode() + b"\n")


def draw(
    network: nn.Module,
    image_shape: tuple[int, ...],
    trajectories: Trajectories,
    folder: Path | None = None,
) -> dict[str, Figure]:
    """Pictures of the strides over the steps and of the windows, where the network has them.

    With a ``folder`` they are files there, ``strides.png`` and ``windows.png``.
    """
    figures = {}
    if trajectories:
        file = folder / "strides.png" if folder else None
        figures["strides"] = plot_stride_trajectories(trajectories, file)
    if any(isinstance(layer, DiffStride | FixedSpectralPooling) for layer in network.modules()):
        image = next(network.parameters()).new_zeros(1, *image_shape)
        file = folder / "windows.png" if folder else None
        figures["windows"] = plot_windows(network, image, file)
    return figures


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """Read the summary of the finished run in ``workdir``; None if there is none.

    Raises:
        ValueError: the file is not a summary.
    """
    path = workdir / SUMMARY
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_bytes())
        format_summary(summary)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a summary of a run: move it away, or choose another workdir"
        ) from error
    return summary


def format_summary(summary: Mapping[str, Any]) -> str:
    """A summary as text to print.

    >>> print(format_summary(dict(test_accuracy=91.5, strides={"stem.pooling": [1.21, 1.3]},
    ...     multiply_adds_start=36_000_000, multiply_adds_end=63_400_000, epochs=5, seconds=75.2)))
    test accuracy        91.50 % after 5 epochs
    stride stem.pooling  1.210 x 1.300
    multiply-adds        36.00 M at the start, 63.40 M at the end, per image
    time                 1 min 15 s
    """
    start, end = (summary[f"multiply_adds_{moment}"] / 1e6 for moment in ("start", "end"))
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    epochs = counted(summary["epochs"], "epoch")
    lines = {"test accuracy": f"{summary['test_accuracy']:.2f} % after {epochs}"}
    sizes = summary.get("input_sizes", {})  # older summaries have none
    for name, strides in summary["strides"].items():
        lines[f"stride {name}"] = strides_text(strides, sizes.get(name, ()), form=".3f")
    lines["multiply-adds"] = f"{start:.2f} M at the start, {end:.2f} M at the end, per image"
    lines["time"] = f"{minutes} min {seconds} s"
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())
