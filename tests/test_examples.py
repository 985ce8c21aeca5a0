"""The example scripts run as a reader runs them."""

import re
import subprocess
import sys

import pytest
from matplotlib.image import imread


@pytest.mark.slow
def test_train_digits_learns_digits_and_strides_at_its_cost(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "diffstride.examples.train_digits", "a.png"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    accuracy = re.search(
        r"^test accuracy: ([\d.]+)% at ([\d.]+) M of ([\d.]+) M multiply-adds per image$",
        done.stdout,
        re.MULTILINE,
    )
    assert accuracy is not None, done.stdout
    percent, cost, budget = map(float, accuracy.groups())
    assert percent > 90  # of 10 classes
    assert 0.97 * budget < cost <= budget
    strides = [float(value) for value in re.findall(r"^stride/\S+: ([\d.]+)$", done.stdout, re.M)]
    assert len(strides) == 4
    assert max(strides) > 2.2  # all were 2
    assert min(strides) < 1.95
    maps = re.findall(r"maps after pooling (.+)$", done.stdout, re.MULTILINE)
    assert maps[-1] != "16 x 16, 8 x 8"
    assert "frozen outputs agree" in done.stdout
    assert imread(tmp_path / "a.png").shape[1] >= 800
