"""Pictures show the numbers of the log."""

import numpy as np
import pytest

from diffstride.plots import plot_stride_trajectories, read_trajectories

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


def test_picture_has_a_line_for_each_stride(trajectories, tmp_path):
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


def test_a_log_without_strides_gives_an_empty_picture(tmp_path):
    figure = plot_stride_trajectories({}, tmp_path / "strides.svg")
    assert not figure.axes[0].get_lines()
    assert b"<svg" in (tmp_path / "strides.svg").read_bytes()
