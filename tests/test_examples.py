"""The example scripts run as a reader runs them."""

import re
import subprocess
import sys

import pytest
import torch
from matplotlib.image import imread

from diffstride.examples.convert_torchvision import batches_of
from diffstride.training.data import load_datasets


def test_conversion_example_draws_new_batches_in_each_epoch():
    data = load_datasets("digits", batch_size=512, augment_fn="crop")
    (first, _), (again, _), (second, _) = [*batches_of(data, 1), *batches_of(data, 2)][::2]
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert not torch.equal(second, first)


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
