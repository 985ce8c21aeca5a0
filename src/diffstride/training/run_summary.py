"""What a network costs at its current strides, and what a finished run has to say."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffstride.graph.fake_run import evaluating
from diffstride.plots import plot_stride_trajectories, plot_windows, read_trajectories
from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.strides import AXES, stride_layers
from diffstride.training.files import atomic_file

SUMMARY = "summary.json"


@dataclass(frozen=True)
class NetworkCost:
    """Multiply-adds of one image, and the size of the map each layer with strides puts out."""

    multiply_adds: int
    map_sizes: dict[str, tuple[int, ...]]

    def scalars(self) -> dict[str, float]:
        """The same as named numbers for a logger."""
        maps = {
            f"map/{name}{axis}": size
            for name, sizes in self.map_sizes.items()
            for axis, size in zip(AXES[len(sizes)], sizes, strict=True)
        }
        return {"multiply_adds": self.multiply_adds, **maps}


@torch.no_grad()
def measure_cost(network: nn.Module, image_shape: tuple[int, ...]) -> NetworkCost:
    """Count multiply-adds and map sizes by passing one blank image through ``network``.

    Products counted by torch's `FlopCounterMode`, which knows matrix products and convolutions
    but not the FFTs of `diffstride.reference`. The network is in evaluation mode meanwhile.

    >>> measure_cost(nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32)).multiply_adds
    221184
    """
    image = next(network.parameters()).new_zeros(1, *image_shape)
    sizes: dict[str, tuple[int, ...]] = {}

    def note_size(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        sizes[name] = tuple(output.shape[2:])

    hooks = [
        layer.register_forward_hook(partial(note_size, name))
        for name, layer in stride_layers(network).items()
    ]
    with evaluating(network):
        network(image)  # forms the pooling matrices, which are kept: no cost of an image
        with FlopCounterMode(display=False) as counter:
            network(image)
    for hook in hooks:
        hook.remove()
    return NetworkCost(counter.get_total_flops() // 2, sizes)


def layer_strides(network: nn.Module) -> dict[str, list[float]]:
    """The learnable strides of each layer, by name."""
    layers = stride_layers(network)
    return {name: list(layer.stride_values()) for name, layer in layers.items()}  # pyright: ignore


def save_summary(
    workdir: Path, summary: Mapping[str, Any], network: nn.Module, image_shape: tuple[int, ...]
) -> None:
    """Write ``summary.json`` and the pictures of the strides' trajectories and of the windows."""
    trajectories = read_trajectories(workdir / "metrics.csv")
    if trajectories:
        plot_stride_trajectories(trajectories, workdir / "strides.png")
    if any(isinstance(layer, DiffStride | FixedSpectralPooling) for layer in network.modules()):
        image = next(network.parameters()).new_zeros(1, *image_shape)
        plot_windows(network, image, workdir / "windows.png")
    with atomic_file(workdir / SUMMARY) as file:
        file.write(json.dumps(summary, indent=2).encode() + b"\n")


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """The summary of the finished run in ``workdir``, if there is one."""
    path = workdir / SUMMARY
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_bytes())
        format_summary(summary)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a summary of this program: move it away") from error
    return summary


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary as text for people.

    >>> print(format_summary(dict(test_accuracy=91.5, strides={"stem.pooling": [1.21, 1.3]},
    ...     multiply_adds_start=36_000_000, multiply_adds_end=63_400_000, epochs=5, seconds=75.2)))
    test accuracy        91.50 % after 5 epochs
    stride stem.pooling  1.210 x 1.300
    multiply-adds        36.00 M at the start, 63.40 M at the end, per image
    time                 1 min 15 s
    """
    start, end = (summary[f"multiply_adds_{moment}"] / 1e6 for moment in ("start", "end"))
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    lines = {"test accuracy": f"{summary['test_accuracy']:.2f} % after {summary['epochs']} epochs"}
    for name, strides in summary["strides"].items():
        lines[f"stride {name}"] = " x ".join(f"{stride:.3f}" for stride in strides)
    lines["multiply-adds"] = f"{start:.2f} M at the start, {end:.2f} M at the end, per image"
    lines["time"] = f"{minutes} min {seconds} s"
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())
