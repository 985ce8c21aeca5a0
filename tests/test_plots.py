"""Plots show the numbers they are given."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn

from diffstride import DiffStride, FixedSpectralPooling
from diffstride.plots import plot_stride_trajectories, plot_windows, read_trajectories
from diffstride.spectral.axis_plan import window
from experiments.grid_plots import (
    CostPoint,
    LearnedStrides,
    plot_accuracy_against_cost,
    plot_learned_strides,
)

LOG = """\
step,loss,stride/b.pool/height,stride/b.pool/width,stride/a.pool/height,stride/a.pool/width
2,0.7,1.6,2.5,1.0,1.1
0,,2.0,2.5,1.5,1.5
1,0.9,,,,
"""


@pytest.fixture
def trajectories(tmp_path):
    (tmp_path / "metrics.csv").write_text(LOG)
    return read_trajectories(tmp_path / "metrics.csv")


def test_trajectories_are_read_in_order_of_steps(trajectories):
    assert trajectories == {
        "b.pool/height": ([0, 2], [2.0, 1.6]),
        "b.pool/width": ([0, 2], [2.5, 2.5]),
        "a.pool/height": ([0, 2], [1.5, 1.0]),
        "a.pool/width": ([0, 2], [1.5, 1.1]),
    }


def test_plot_has_a_line_for_each_stride(trajectories, tmp_path):
    figure = plot_stride_trajectories(trajectories, tmp_path / "strides.png")
    lines = figure.axes[0].get_lines()
    assert len(lines) == len(trajectories)
    for line, (name, (steps, strides)) in zip(lines, trajectories.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xydata().T, [steps, strides])
    colours = [line.get_color() for line in lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
    assert (tmp_path / "strides.png").read_bytes().startswith(b"\x89PNG")


def test_strides_are_drawn_into_given_axes(trajectories, tmp_path):
    figure = Figure()
    left, right = figure.subfigures(1, 2)
    first, second, third = left.add_subplot(), *right.subplots(2)
    assert plot_stride_trajectories(trajectories, ax=first) is figure
    path = tmp_path / "both.png"
    assert plot_stride_trajectories(trajectories, path, ax=third) is figure
    assert [len(axes.get_lines()) for axes in (first, second, third)] == [4, 0, 4]
    assert (third.get_xlabel(), third.get_ylabel()) == ("step", "stride")
    assert_drawn(path)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_stride_trajectories({"a/height": ([0, 1], [2.0, 1.5])}, *path),
        lambda path: plot_windows(pooled_network(2), torch.zeros(1, 2, 16, 16), *path),
        lambda path: plot_accuracy_against_cost(POINTS, *path),
        lambda path: plot_learned_strides([LearnedStrides("a", "b", {"c": [1.0, 2.0]})], *path),
    ],
    ids=["trajectories", "windows", "cost", "learned"],
)
def test_a_figure_is_written_only_to_a_given_path(draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    returned = [draw([]), draw([None])]
    assert not list(tmp_path.iterdir())
    draw([tmp_path / "written.png"])
    for number, figure in enumerate(returned):
        figure.savefig(f"{number}.png", dpi=120)
        assert_drawn(tmp_path / f"{number}.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "written.png"]


def test_a_log_without_strides_gives_an_empty_plot(tmp_path):
    figure = plot_stride_trajectories({}, tmp_path / "strides.svg")
    assert not figure.axes[0].get_lines()
    assert b"<svg" in (tmp_path / "strides.svg").read_bytes()


def pooled_network(number, edge="stopband"):
    layers = []
    for i in range(number):
        layers += [
            nn.Conv2d(2, 2, 3, padding=1),
            DiffStride((1.05 + i / 40, 1.1), edge=edge, straight_through=False),
        ]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("edge", ["stopband", "passband"])
def test_plotted_windows_are_those_of_the_layers(edge, tmp_path):
    model = pooled_network(2, edge).train()
    figure = plot_windows(model, torch.zeros(1, 2, 64, 48), tmp_path / "windows.png")
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    size = (64, 48)
    for panel, layer in zip(figure.axes, (model[1], model[3]), strict=True):
        name = "1" if layer is model[1] else "3"
        after = layer.output_size(size)
        assert panel.get_title() == f"{name}\n{size[0]} x {size[1]} → {after[0]} x {after[1]}"
        lines = panel.get_lines()
        height, width = (axis.stride for axis in layer.plan(size))
        labels = [f"height {height:.2f}", f"width {width:.2f}"]
        assert [line.get_label() for line in lines[::3]] == labels
        for i, axis in enumerate(layer.plan(size)):
            curve, dots, cutoff = lines[3 * i : 3 * i + 3]
            bins = np.arange(axis.output_size // 2 + 1) / axis.size
            np.testing.assert_allclose(dots.get_xdata(), bins)
            np.testing.assert_allclose(dots.get_ydata(), window(axis))
            # The curve goes through the dots.
            through = np.interp(bins - 1e-9, curve.get_xdata(), curve.get_ydata())
            np.testing.assert_allclose(through, window(axis), atol=1e-6)
            last = min(axis.cutoff, axis.size / 2)  # beyond N / 2 for a passband edge near stride 1
            assert cutoff.get_xdata()[0] == pytest.approx(last / axis.size)
        size = after


def test_corners_of_a_narrow_window_and_of_one_without_transition(tmp_path):
    def drawn(pool):
        figure = plot_windows(pool, torch.zeros(1, 1, 24), tmp_path / "window.png")
        return figure.axes[0].get_lines()

    curve, dots, _ = drawn(DiffStride((20.0,), straight_through=False))
    assert curve.get_label() == "stride 20.00"
    assert dots.get_ydata().tolist() == [1, 0]  # the mean is kept, the next bin is not
    assert (curve.get_xdata()[0], curve.get_ydata()[0]) == (0, 1)
    straight = DiffStride((3.0,), edge="stopband", straight_through=True)
    for pool in (FixedSpectralPooling((3.0,)), straight):
        curve, dots, end = drawn(pool)
        assert curve.get_label() == "stride 3.00"
        assert curve.get_ydata().tolist() == [1, 1, 1, 0, 0]
        assert dots.get_ydata().tolist() == [1] * 5
        assert end.get_xdata()[0] == pytest.approx(4 / 24)


@pytest.mark.parametrize("number", [1, 4, 20])
def test_every_layer_has_a_panel_large_enough_to_read(number, tmp_path):
    path = tmp_path / "windows.png"
    figure = plot_windows(pooled_network(number), torch.zeros(1, 2, 96, 80), path)
    drawn = [panel for panel in figure.axes if panel.get_lines()]
    assert len(drawn) == number
    assert len({panel.get_title() for panel in drawn}) == number
    height, width = imread(path).shape[:2]
    for panel in drawn:
        box = panel.get_position()
        assert box.width * width > 150
        assert box.height * height > 90


def test_a_wrong_example_leaves_no_hooks(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride(2.0))
    with pytest.raises(RuntimeError):
        plot_windows(network, torch.zeros(1, 2, 8, 8), tmp_path / "windows.png")
    assert not network[1]._forward_pre_hooks


def test_an_example_is_cast_to_the_dtype_of_the_weights(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride(2.0)).bfloat16()
    plot_windows(network, torch.zeros(1, 3, 8, 8), tmp_path / "windows.png")


def test_a_network_without_windows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Conv2d runs no DiffStride or FixedSpectralPooling"):
        plot_windows(nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 8, 8), tmp_path / "windows.png")


POINTS = [
    CostPoint("CIFAR-10", "strided", "2,2", 35e6, 87.0, 0.2),
    CostPoint("CIFAR-10", "learned", "2,2", 60e6, 88.0, 0.1),
    CostPoint("CIFAR-10", "learned", "3,3", 30e6, 88.5),
    CostPoint("CIFAR-100", "strided", "2,2", 35e6, 60.0, 0.4),
]


def points_in(axes):
    """Accuracy by multiply-adds of the points with error bars, by label."""
    return {
        container.get_label(): tuple(container.lines[0].get_xydata()[0])
        for container in axes.containers
    }


def assert_drawn(path):
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 200
    assert 0.005 < (pixels[..., :3] < 0.9).any(-1).mean() < 0.5  # neither blank nor full


def test_accuracy_is_plotted_against_cost_for_each_data_set(tmp_path):
    figure = plot_accuracy_against_cost(POINTS, tmp_path / "cost.png")
    assert_drawn(tmp_path / "cost.png")
    first, second = figure.axes
    assert (first.get_title("left"), second.get_title("left")) == ("CIFAR-10", "CIFAR-100")
    assert points_in(first) == {
        "strided, from 2,2": (35.0, 87.0),
        "learned, from 2,2": (60.0, 88.0),
        "learned, from 3,3": (30.0, 88.5),
    }
    assert points_in(second) == {"strided, from 2,2": (35.0, 60.0)}
    joined = next(line for line in first.lines if line.get_label() == "learned")
    assert joined.get_xydata().tolist() == [[30.0, 88.5], [60.0, 88.0]]
    colours = [container.lines[0].get_color() for container in first.containers]
    assert colours[0] != colours[1] == colours[2]
    assert colours[0] == second.containers[0].lines[0].get_color()
    markers = {c.get_label(): c.lines[0].get_marker() for c in first.containers}
    assert markers["strided, from 2,2"] == markers["learned, from 2,2"]
    assert markers["learned, from 2,2"] != markers["learned, from 3,3"]
    labels = {text.get_text(): text.get_color() for text in first.texts}
    assert labels == {"strided": colours[0], "learned": colours[1]}
    (legend,) = figure.legends  # of markers alone
    assert [text.get_text() for text in legend.get_texts()] == ["from 2,2", "from 3,3"]


def test_labels_beside_the_axes_do_not_overlap():
    names = [f"method {number}, held to the cost before" for number in range(6)]
    points = [CostPoint("a", name, "2", 35e6, 87 + i / 1000) for i, name in enumerate(names)]
    figure = plot_accuracy_against_cost(points)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    boxes.sort(key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert all(0 <= box.x0 < box.x1 <= figure.bbox.x1 for box in boxes)


def test_learned_strides_are_plotted_from_start_to_mean_and_range(tmp_path):
    start = {"stem": (1, 1), "last": (2, 2)}
    runs = [
        LearnedStrides("CIFAR-10", "free", {"stem": [1.0, 1.1], "last": [2.0, 2.2]}, start),
        LearnedStrides("CIFAR-10", "free", {"stem": [1.3, 1.3], "last": [1.9, 1.8]}, start),
        LearnedStrides("CIFAR-100", "held", {"stem": [1.2, 1.4], "last": [2.5, 2.6]}),
    ]
    figure = plot_learned_strides(runs, tmp_path / "learned.png")
    assert_drawn(tmp_path / "learned.png")
    drawn = {axes.get_title("left"): axes for axes in figure.axes if axes.axison}
    assert list(drawn) == ["CIFAR-10, free", "CIFAR-100, held"]
    free, held = drawn.values()
    means = [each.lines[0].get_ydata()[0] for each in free.containers]
    np.testing.assert_allclose(means, [1.15, 1.2, 1.95, 2.0])
    ranges = [each.lines[2][0].get_segments()[0][:, 1] for each in free.containers]
    np.testing.assert_allclose(ranges, [[1.0, 1.3], [1.1, 1.3], [1.9, 2.0], [1.8, 2.2]])
    hollow = [line.get_ydata()[0] for line in free.lines if line.get_markerfacecolor() == "none"]
    assert hollow == [1, 1, 2, 2]
    assert not [line for line in held.lines if line.get_markerfacecolor() == "none"]
    assert [label.get_text() for label in held.get_xticklabels()] == ["stem", "last"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "height",
        "width",
        "start",
    ]


@pytest.mark.parametrize("size", [(64, 48), (24,), (8, 12, 16)])
def test_maps_are_squares_to_scale(size):
    network = nn.Sequential(DiffStride((2.0,) * len(size)), DiffStride((2.0,) * len(size)))
    figure = plot_windows(network, torch.zeros(1, 1, *size))
    thin, largest = max(size) / 12, max(size)
    for panel, factor in zip(figure.axes, (1, 2), strict=True):
        (corner,) = panel.child_axes
        before, after = corner.patches
        height, width = (thin * factor, size[0]) if len(size) == 1 else size[:2]
        assert before.get_width() == width / factor
        assert before.get_height() == pytest.approx(height / factor)
        assert after.get_width() == before.get_width() / 2
        assert corner.get_xlim() == (0, largest)
        assert corner.get_aspect() == 1


def test_pictures_are_readable_on_white_and_on_black(tmp_path):
    path = tmp_path / "windows.png"
    plot_windows(pooled_network(4), torch.zeros(1, 2, 64, 48), path)
    pixels = imread(path)
    assert pixels.shape[1] == 720  # twice the width of a small phone
    assert (pixels[..., 3] == 0).mean() > 0.5
    ink = pixels[pixels[..., 3] == 1][:, :3]
    luminance = (ink / 12.92 * (ink <= 0.04) + ((ink + 0.055) / 1.055) ** 2.4 * (ink > 0.04)) @ [
        0.2126,
        0.7152,
        0.0722,
    ]
    assert (1.05 / (luminance.max() + 0.05)) > 2.5
    assert ((luminance.min() + 0.05) / 0.05) > 3
