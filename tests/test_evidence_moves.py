"""Strides that move on clear gradients only."""

import pytest
import torch

from benchmarks.evidence_moves import BUDGET, Evidence, build, main
from diffstride import CostBudget, stride_layers

STEPS = 400


@pytest.fixture
def evidence():
    network = build("1.5, 3, 6", "evidence", 100, 3)
    budget = CostBudget(network, torch.zeros(1, 3, 32, 32), multiply_adds=BUDGET)
    return network, budget, Evidence(network, budget, STEPS)


def learn(found, gradient, noise, steps=range(STEPS)):
    """Let the strides see a gradient of the last map, with noise on all; the maps afterwards."""
    network, budget, evidence = found
    generator = torch.Generator().manual_seed(0)
    layers = list(stride_layers(network).values())
    for step in steps:
        for layer in layers:
            layer.strides.grad = noise * torch.randn(2, generator=generator)
        layers[-1].strides.grad += gradient
        evidence.step(step)
        assert budget.cost.value() <= BUDGET
    return [[axis.output_size for axis in axes] for axes in budget.cost.maps().values()][::-1]


def test_a_map_that_the_loss_asks_for_grows_at_the_cost_of_the_others(evidence):
    assert learn(evidence, 0.0, 0.0, range(1)) == [[21, 21], [8, 8], [2, 2]]
    first, _, last = learn(evidence, 0.01, 0.01)
    assert min(last) >= 3
    assert max(first) < 21
    assert evidence[1].cost.value() >= 0.98 * BUDGET


def test_noise_alone_hardly_moves_a_map(evidence):
    maps = torch.tensor(learn(evidence, 0.0, 0.01))
    assert (maps - torch.tensor([[21, 21], [8, 8], [2, 2]])).abs().max() <= 1


def test_nothing_moves_at_the_beginning_and_at_the_end(evidence):
    early, late = range(STEPS // 10), range(6 * STEPS // 10, STEPS)
    for steps in (early, late):
        assert learn(evidence, 0.01, 0.0, steps) == [[21, 21], [8, 8], [2, 2]]


@pytest.mark.slow
def test_command_trains_each_rule_from_each_start(tmp_path):
    rows = main(["--quick", "--out", str(tmp_path / "rows.jsonl")])
    assert len(rows) == 9
    assert all(0.97 * BUDGET <= row["multiply_adds"] <= BUDGET for row in rows)
