"""Draw the pictures of the documentation: ``python -m docs.pictures`` writes docs/pictures/*.png.

The library computes all of them. Only the strides of a training come from its log.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from diffstride import diff_stride, spectral
from diffstride._picture_style import COLOURS, INK, WIDTH, styled
from diffstride._picture_style import DPI as SHARP
from diffstride.plots import plot_stride_trajectories, plot_windows, read_trajectories
from diffstride.spectral import EDGES, Axis, plan_axis
from diffstride.spectral.axis_plan import Edge
from diffstride.spectral.matrix import ramp_factors
from diffstride.training import gin_registry
from diffstride.training.command_line import configure

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
RUN = ROOT / "results" / "small" / "diffstride"

SIZE = 32  # samples of the axis in the pictures of one axis
STRIDES = (1.0, 1.5, 2.0, 3.0, 4.0)
WHOLE_STRIDES = (2, 3, 4)  # for methods without fractional strides
FRACTIONAL_STRIDES = (1.0, 1.25, 1.5, 2.0, 3.0)
PANEL, GAP = 192, 40  # pixels of an image and between two; PANEL is a multiple of 2, 3 and 4
TITLE = 60  # pixels above an image, for two lines
LETTERS = 9.5  # pixels of the letters over images where a picture is 360 pixels wide


@styled
def windows() -> Figure:
    """The window of one axis at several strides: gain against bin, a panel for each edge."""
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for panel, edge in zip(panels, EDGES, strict=True):
        panel.set(xlabel="frequency bin k", xlim=(0, SIZE / 2), ylabel="gain m(k)")
        panel.set_title(f'edge="{edge}"')
        for stride, colour in zip(STRIDES, COLOURS, strict=False):
            _draw_window(panel, stride, edge, colour)
        panel.grid()
        panel.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=1)
    return figure


def _draw_window(panel: Any, stride: float, edge: Edge, colour: Any) -> None:
    axis = plan_axis(SIZE, stride, edge=edge, straight_through=False)
    label = f"stride {stride:g}: {SIZE} → {axis.output_size}"
    panel.plot(*_corners(axis), color=colour, label=label)
    gains = spectral.window(axis)
    panel.plot(range(len(gains)), gains, ".", color=colour)


def _corners(axis: Axis) -> tuple[list[float], list[float]]:
    """The corners of the window as a polygon: flat part, ramp, and crop."""
    last = min(axis.cutoff, axis.output_size / 2)
    flat = min(max(axis.cutoff - axis.transition, 0.0), last)
    gain = min((axis.cutoff - last) / axis.transition, 1.0)
    return [0.0, flat, last, last, axis.size / 2], [1.0, 1.0, gain, 0.0, 0.0]


@styled
def matrices() -> Figure:
    """The matrix of one axis for both edges, and its derivative in the stride."""
    passband, stopband = (plan_axis(SIZE, 2.0, edge=edge, straight_through=False) for edge in EDGES)
    left, right = ramp_factors(SIZE, stopband.output_size, stopband.ramp)
    shown = {
        f'A, edge="passband": {passband.output_size} x {SIZE}': spectral.axis_matrix(passband),
        f'A, edge="stopband": {stopband.output_size} x {SIZE}': spectral.axis_matrix(stopband),
        'dA/ds, edge="stopband"': stopband.slope * left @ right.T,
    }
    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    panels = figure.subplots(len(shown), 1, height_ratios=[len(each) for each in shown.values()])
    for panel, (title, matrix) in zip(panels, shown.items(), strict=True):
        limit = float(matrix.abs().max())
        image = panel.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        panel.set(xlabel="sample j in", ylabel="sample i out")
        panel.set_title(title)
        figure.colorbar(image, ax=panel, location="right", shrink=0.9)
    return figure


@styled
def output_lengths() -> Figure:
    """The output length against the stride, beside that of a strided convolution."""
    strides = np.linspace(1, 5, 2001)
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panel = figure.add_subplot(xlabel="stride", ylabel="samples out")
    panel.set_title(f"Output length of {SIZE} samples")
    for edge, colour in zip(EDGES, COLOURS, strict=False):
        lengths = [spectral.output_size(SIZE, stride, edge=edge) for stride in strides]
        panel.step(strides, lengths, where="post", color=colour, label=f'edge="{edge}"')
    whole = range(1, 6)
    lengths = [len(range(0, SIZE, stride)) for stride in whole]
    panel.plot(whole, lengths, "o", color=INK, label="strided convolution")
    panel.grid()
    panel.legend()
    return figure


def aliasing() -> Figure:
    """A zone plate downsampled at whole strides, by the layer and by two other methods."""
    return _draw_images(downsample(zone_plate(PANEL // 2)), limits=(-1, 1))


def downsample(image: Tensor) -> dict[str, dict[str, Tensor]]:
    """An image and its downsampled versions, by method and title."""
    methods: dict[str, Callable[[int], Tensor]] = {
        "every s-th sample": lambda stride: image[..., ::stride, ::stride],
        "average pooling": lambda stride: F.avg_pool2d(image, stride),
        'DiffStride, "stopband"': lambda stride: diff_stride(image, stride, straight_through=False),
    }
    return {
        name: {"the image": image} | {f"stride {s}": method(s) for s in WHOLE_STRIDES}
        for name, method in methods.items()
    }


def zone_plate(size: int) -> Tensor:
    """``cos(pi r^2 / N)``, whose frequency grows with the radius up to 1/2 at the borders."""
    place = torch.arange(size) - size / 2
    return torch.cos(torch.pi / size * (place[:, None] ** 2 + place**2))[None, None]


def fractional() -> Figure:
    """A star downsampled at fractional strides, for both edges."""
    image = siemens_star(PANEL // 3)
    rows = {
        f'edge="{edge}"': {
            f"stride {stride:g}": diff_stride(image, stride, edge=edge, straight_through=False)
            for stride in FRACTIONAL_STRIDES
        }
        for edge in EDGES
    }
    return _draw_images(rows, limits=(0, 1))


def siemens_star(size: int, spokes: int = 16, oversampling: int = 8) -> Tensor:
    """White spokes on black, finer towards the centre; every pixel is an average."""
    place = (torch.arange(size * oversampling) + 0.5) / (size * oversampling) - 0.5
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    spoke = torch.sin(spokes * torch.atan2(rows, columns)) > 0
    star = spoke & (torch.hypot(rows, columns) < 0.45)
    return F.avg_pool2d(star.float()[None, None], oversampling)


@styled
def _draw_images(rows: dict[str, dict[str, Tensor]], limits: tuple[float, float]) -> Figure:
    """Draw images with a whole number of pixels a sample where possible.

    Other scales would add aliasing, which some of the pictures are about.
    """
    columns = max(map(len, rows.values()))
    step = PANEL + GAP + 2 * TITLE
    width, height = columns * (PANEL + GAP), len(rows) * step
    figure = Figure(figsize=(width / SHARP, height / SHARP))
    letters = LETTERS * width / 360 * 72 / SHARP  # in points
    for i, (name, images) in enumerate(rows.items()):
        top = height - i * step
        figure.text(0.01, (top - TITLE / 2) / height, name, fontsize=1.1 * letters, va="center")
        for j, (title, image) in enumerate(images.items()):
            corner = (j * (PANEL + GAP) + GAP / 2, top - step + GAP)
            place = (corner[0] / width, corner[1] / height, PANEL / width, PANEL / height)
            panel = figure.add_axes(place, xticks=[], yticks=[])
            low, high = limits
            panel.imshow(
                image[0, 0].numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest"
            )
            samples = " x ".join(map(str, image.shape[2:]))
            panel.set_title(f"{title}\n{samples}", fontsize=letters, pad=4, linespacing=1.0)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "windows.png": windows,
    "matrices.png": matrices,
    "output_lengths.png": output_lengths,
    "aliasing.png": aliasing,
    "fractional.png": fractional,
}
TRAJECTORIES = "strides.png"
LEARNED = "learned_windows.png"


def learned_network() -> torch.nn.Module:
    """The network of the run, built by its recipe, with its final strides.

    The weights were not kept; a picture of windows does not need them.
    """
    configure(["cifar10_small.gin"])
    network: torch.nn.Module = gin_registry.resnet18(num_output_classes=10)
    gin.clear_config()
    strides = json.loads((RUN / "summary.json").read_text())["strides"]
    with torch.no_grad():
        for name, values in strides.items():
            network.get_parameter(f"{name}.strides").copy_(torch.tensor(values))
    return network


def shrink(path: Path) -> None:
    """Reduce a picture to a palette, which halves its file without a visible difference."""
    with Image.open(path) as picture:
        shrunk = picture.convert("RGBA").quantize(dither=Image.Dither.NONE)
    shrunk.save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.pictures", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().savefig(folder / name, dpi=SHARP)
    plot_stride_trajectories(read_trajectories(RUN / "metrics.csv"), folder / TRAJECTORIES)
    plot_windows(learned_network(), torch.zeros(1, 3, SIZE, SIZE), folder / LEARNED)
    for name in (*PICTURES, TRAJECTORIES, LEARNED):
        shrink(folder / name)


if __name__ == "__main__":
    main()
