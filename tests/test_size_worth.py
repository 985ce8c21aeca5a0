"""What the accuracies of guessed strides say that a map size is worth."""

import pytest
import torch

from experiments.averages import Entry
from experiments.size_worth import fit, map_sizes, size_worth_table, worth

SIZES = torch.tensor(
    [[[16, 16], [8, 8]], [[20, 14], [5, 9]], [[9, 11], [12, 6]], [[24, 16], [3, 4]]]
).double()


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_the_worth_is_the_slope_of_the_accuracies(power):
    """Accuracies by a known law are fitted exactly, and their slope is the worth."""
    factors = torch.tensor([3.0, 5.0]).double()

    def accuracies(sizes):
        known = sizes.log() if power == 0 else -(sizes**-power)
        return 60 + (known.sum(-1) * factors).sum(-1)

    found = fit(SIZES, accuracies(SIZES), torch.ones(len(SIZES)).double(), power)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert found.factors.tolist() == pytest.approx(factors.tolist())
    larger = SIZES[0].clone()
    larger[1, 0] *= 1 + 1e-6
    rise = (accuracies(larger) - accuracies(SIZES[0])).item() / 1e-6
    assert worth(found.factors[1], SIZES[0, 1, 0], power).item() == pytest.approx(rise, rel=1e-4)


def test_accuracies_of_several_runs_count_more():
    accuracies = torch.tensor([62.0, 61.0, 60.5, 60.0]).double()
    sizes, weights = SIZES[:, :1], torch.tensor([1e6, 1.0, 1e6, 1.0]).double()
    first, _, third, _ = -(1 / sizes).sum((1, 2))
    slope = (62.0 - 60.5) / (first - third).item()  # through the two that count
    assert fit(sizes, accuracies, weights, 1.0).factors.item() == pytest.approx(slope, rel=1e-3)


def test_each_data_set_is_fitted_by_itself():
    """Accuracies of two data sets differ by far more than those of the guesses of one."""

    def guesses(dataset, offset, count):
        for number in range(count):
            strides = [1, 1, 1.5 + 0.1 * number, 3.0 - 0.2 * number, 2.0 + 0.3 * (number % 3)]
            sizes = torch.tensor(map_sizes(strides[2:], 32)).double()
            row = {"dataset": dataset, "strides_start": strides, "seed": 0, "fold": None}
            yield Entry(({**row, "test_accuracy": offset + sizes.log().sum().item()},))

    text = size_worth_table([*guesses("cifar10", 80, 8), *guesses("cifar100", 50, 8)])
    errors = [line.split("|")[3].strip() for line in text.splitlines()[2:]]
    assert len(errors) == 8
    assert (errors[0], errors[4]) == ("0.00", "0.00")
    few = size_worth_table([*guesses("cifar10", 80, 7), *guesses("cifar100", 50, 8)])
    assert "CIFAR-10," not in few
