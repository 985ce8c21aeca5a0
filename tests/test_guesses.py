"""The search of guesses: lists of strides that all cost the same."""

import pytest
import torch

from diffstride import MultiplyAdds
from diffstride.spectral.axis_plan import plan_axis
from experiments.guesses import (
    COST,
    EXAMPLE,
    NATURAL,
    build,
    guesses,
    random_guesses,
    scaled,
    short,
)
from experiments.runner import GridRunner


@pytest.fixture(scope="module")
def written():
    """The strides of the packaged configuration, each list once."""
    runs = GridRunner(("guesses.gin",)).runs
    return list(dict.fromkeys(run.strides for run in runs.values()))


@pytest.mark.parametrize("number", [0, 4, 7, 15])  # a second each
def test_the_configuration_holds_the_guesses_of_the_module(written, number):
    strides = [each if isinstance(each, tuple) else (each, each) for each in written[number][2:]]
    assert tuple(strides) == scaled(guesses()[number])
    assert len(written) == len(guesses()) == 16


def test_all_guesses_cost_the_same(written):
    costs = [MultiplyAdds(build(each[2:]), EXAMPLE).value() for each in written]
    assert all(0.985 * COST <= cost <= COST for cost in costs)
    assert all(abs(cost / 35.05e6 - 1) < 0.02 for cost in costs)  # of the strided network


def test_the_first_guess_has_the_maps_of_strides_of_2(written):
    maps = MultiplyAdds(build(written[0][2:]), EXAMPLE).maps()
    assert sorted(axes[0].output_size for axes in maps.values()) == [4, 8, 16]
    assert NATURAL[0] == (2, 2, 2)


def test_random_guesses_are_log_uniform_and_repeatable():
    assert list(random_guesses()) == list(random_guesses())
    values = torch.tensor([list(random_guesses(seed)) for seed in range(200)]).log().flatten()
    high = torch.tensor(4.0).log()
    assert values.min() >= 0
    assert values.max() <= high
    assert abs(values.mean() / high - 0.5) < 0.02


@pytest.mark.parametrize("size", [8, 17, 32])
def test_short_strides_give_the_size_they_stand_for(size):
    plans = [plan_axis(size, 1 + step / 100) for step in range(100 * size)]
    for output in range(1, size):
        axis = next(plan for plan in plans if plan.output_size <= output)
        assert plan_axis(size, short(axis)).output_size == axis.output_size
