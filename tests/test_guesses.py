"""The search of guesses: lists of strides that all cost the same."""

import ast
import re

import pytest
import torch

from diffstride import MultiplyAdds, stride_layers
from diffstride.spectral.axis_plan import plan_axis
from experiments.guesses import SEARCHES, as_gin, main, random_guesses, short
from experiments.runner import GridRunner

FILES = {
    "cifar": "guesses.gin",
    "fsdd_mel": "fsdd_mel_table.gin",
    "fsdd_wave": "fsdd_wave_table.gin",
}
CIFAR = SEARCHES["cifar"]
# A guess of each kind: natural ones, and random ones with one stride for both axes and with two.
SOME = [
    ("cifar", 0),
    *(pytest.param("cifar", number, marks=pytest.mark.slow) for number in (4, 9, 15)),
    ("fsdd_mel", 5),
    ("fsdd_wave", 7),
]


@pytest.fixture(scope="module")
def written():
    """The strides of fixed spectral pooling in the packaged configurations, each list once."""
    return {name: spectral(file, len(SEARCHES[name].guesses())) for name, file in FILES.items()}


def spectral(file, count):
    runs = GridRunner((file,)).runs.values()
    strides = [run.strides for run in runs if run.pooling == "spectral" and len(run.strides) == 5]
    # Grids may have other rows with whole strides.
    return [each for each in dict.fromkeys(strides) if any(s != int(s) for s in flat(each))][:count]


def flat(strides):
    return [each for s in strides for each in (s if isinstance(s, tuple) else (s,))]


@pytest.mark.parametrize(("name", "number"), SOME)
def test_configurations_hold_the_guesses_of_the_module(written, name, number):
    search = SEARCHES[name]
    guesses = search.guesses()
    assert len(written[name]) == len(guesses)
    text = as_gin(search.first, search.scaled(guesses[number]))
    assert written[name][number] == tuple(ast.literal_eval(text))


@pytest.mark.parametrize("name", FILES)
def test_all_guesses_cost_the_same(written, name):
    search = SEARCHES[name]
    first, *_, last = networks = [search.build(each[2:]) for each in written[name]]
    cost = MultiplyAdds(first, search.example)
    costs = [
        cost.value({key: layer.stride_values() for key, layer in stride_layers(network).items()})
        for network in networks
    ]
    assert all(0.98 * search.cost <= cost <= search.cost for cost in costs)
    assert costs[-1] == MultiplyAdds(last, search.example).value()


def test_guesses_on_cifar_cost_what_the_strided_network_costs():
    assert CIFAR.cost / 35.05e6 - 1 < 0.02


def test_the_first_guess_has_the_maps_of_strides_of_2(written):
    maps = MultiplyAdds(CIFAR.build(written["cifar"][0][2:]), CIFAR.example).maps()
    assert sorted(axes[0].output_size for axes in maps.values()) == [4, 8, 16]
    assert CIFAR.natural[0] == (2, 2, 2)


def test_random_guesses_are_log_uniform_and_repeatable():
    assert list(random_guesses(4, 4, 2)) == list(random_guesses(4, 4, 2))
    drawn = [list(random_guesses(4, 4, 2, seed)) for seed in range(200)]
    values = torch.tensor(drawn).log().flatten()
    high = torch.tensor(4.0).log()
    assert values.min() >= 0
    assert values.max() <= high
    assert abs(values.mean() / high - 0.5) < 0.02


def test_unknown_search_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["cifar100"])
    assert re.search(r"'cifar100'.*cifar.*fsdd_mel.*fsdd_wave", capsys.readouterr().err)


@pytest.mark.parametrize("size", [8, 17, 32])
def test_short_strides_give_the_size_they_stand_for(size):
    plans = [plan_axis(size, 1 + step / 100) for step in range(100 * size)]
    for output in range(1, size):
        axis = next(plan for plan in plans if plan.output_size <= output)
        assert plan_axis(size, short(axis)).output_size == axis.output_size
