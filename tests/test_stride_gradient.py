"""The gradient of strides next to measured changes of the loss."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.stride_gradient import adapted, losses, main, measure, stride_for
from diffstride import DiffStride
from diffstride.spectral.axis_plan import plan_axis


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), DiffStride(2.0), nn.Conv2d(4, 4, 3, padding=1)]
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 16, 16, generator=generator), torch.arange(8) % 3) for _ in range(4)]


@pytest.mark.parametrize("output_size", range(1, 16))
def test_strides_give_the_size_asked_for(output_size):
    stride = stride_for(plan_axis(16, 2.0), output_size)
    assert plan_axis(16, stride).output_size == output_size


def test_changes_are_those_of_the_loss_at_the_other_sizes(network, batches):
    before = copy.deepcopy(network.state_dict())
    rows = list(measure(network, batches))
    assert [(row["axis"], row["size"], row["output_size"]) for row in rows] == [
        (0, 16, 8),
        (1, 16, 8),
    ]
    changed = copy.deepcopy(network).train()
    for key, size in (("one_less", 7), ("one_more", 9)):
        changed[1].strides.data = torch.tensor([stride_for(plan_axis(16, 2.0), size), 2.0])
        assert changed[:2](batches[0][0]).shape[2] == size
        now, then = losses(network.train(), batches), losses(changed, batches)
        expected = sum(b - a for a, b in zip(now, then, strict=True)) / len(now)
        assert rows[0][key]["mean"] == pytest.approx(expected, abs=1e-6)
    expected = (rows[0]["one_less"]["mean"] - rows[0]["one_more"]["mean"]) / 2
    assert rows[0]["measured"]["mean"] == pytest.approx(expected)
    assert rows[0]["measured"]["error"] > 0
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items() if "weight" in k)


def test_a_training_that_changes_nothing_costs_nothing(network, batches):
    """At a rate of 0 the difference is that of the changed map alone."""
    (row,) = adapted(network, batches, rate=0.0)
    changed = copy.deepcopy(network).train()
    changed[1].strides.data[0] = stride_for(plan_axis(16, 2.0), 7)
    now, then = losses(network.train(), batches[2:]), losses(changed, batches[2:])
    expected = sum(b - a for a, b in zip(now, then, strict=True)) / 2
    assert row["mean"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_command_measures_both_starts(tmp_path):
    command = ["--quick", "--workdir", str(tmp_path), "--out", str(tmp_path / "rows.jsonl")]
    rows = main(command)
    assert {row["start"] for row in rows} == {"2, 2, 2", "1.5, 3, 6"}
    assert len(main(command)) == len(rows)  # nothing is measured again
