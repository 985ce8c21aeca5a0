"""Strides that somebody might guess, all scaled to one cost: the yardstick of learned strides.

python3 -m experiments.guesses    # prints the lists of guesses.gin
"""

from collections.abc import Iterator, Sequence
from math import exp, log
from random import Random

import torch
from torch import nn

from diffstride import CostBudget, DiffStride, MultiplyAdds
from diffstride.resnet import resnet18
from diffstride.spectral.axis_plan import Axis, plan_axis

COST = 35.6e6  # multiply-adds at strides of 2, 2, 2, within 2 % of those of the strided network
NATURAL = ((2, 2, 2), (1, 2, 4), (4, 2, 1), (3, 1, 4), (1, 1, 8), (2, 1, 4), (2, 4, 1), (8, 1, 1))
LARGEST = 4.0  # of random strides, before they are scaled
SQUARE, OBLONG = 4, 4  # random guesses with one stride for both axes, and with two
FACTORS = [exp(step / 50) for step in range(-100, 101)]  # from 0.14 to 7.4
EXAMPLE = torch.zeros(1, 3, 32, 32)

Guess = tuple[tuple[float, float], ...]


def random_guesses(seed: int = 0) -> Iterator[Guess]:
    """Strides whose logarithms are uniform between those of 1 and `LARGEST`."""
    source = Random(seed)

    def draw() -> float:
        return exp(source.uniform(0, log(LARGEST)))

    for _ in range(SQUARE):
        yield tuple((each, each) for each in (draw(), draw(), draw()))
    for _ in range(OBLONG):
        yield tuple((draw(), draw()) for _ in range(3))


def build(guess: Guess) -> nn.Module:
    """The ResNet-18 of width 16 with strides of a guess."""
    options = {"width": 16, "pool_stem": False, "order": "before", "num_output_classes": 100}
    return resnet18([1, 1, *guess], pooling_cls=DiffStride, **options)


def scaled(guess: Guess) -> Guess:
    """The strides times one factor, none below 1, such that the network costs `COST`.

    `CostBudget` then moves map sizes until a hundredth of the cost is unused at most.
    """
    cost = MultiplyAdds(build(guess), EXAMPLE)

    def times(factor: float) -> Guess:
        return tuple((max(1.0, high * factor), max(1.0, wide * factor)) for high, wide in guess)

    def distance(factor: float) -> float:
        return abs(cost.value(dict(zip(cost.layers, times(factor), strict=True))) - COST)

    network = build(times(min(FACTORS, key=distance)))
    budget = CostBudget(network, EXAMPLE, multiply_adds=COST)
    maps = budget.cost.maps()
    return tuple(tuple(map(short, maps[name])) for name in budget.cost.layers)  # type: ignore[misc]


def short(axis: Axis) -> float:
    """The middle of the strides that give an axis its output size, in few digits.

    >>> short(plan_axis(32, 2.0))  # 16 samples: from 2 to below 32 / 15
    2.07
    """
    low, high = axis.size / (axis.output_size + 2), 2 * axis.size / axis.output_size
    for digits in (100, 1000):
        grid = [
            step / digits for step in range(int(low * digits), int(high * digits)) if step >= digits
        ]
        same = [at for at in grid if plan_axis(axis.size, at).output_size == axis.output_size]
        if same:
            return same[len(same) // 2]
    raise ValueError(f"no stride of few digits gives {axis.output_size} of {axis.size} samples")


def guesses() -> list[Guess]:
    """All guesses, natural ones first, before they are scaled."""
    natural = [tuple((float(each), float(each)) for each in guess) for guess in NATURAL]
    return [*natural, *random_guesses()]


def as_gin(strides: Sequence[Sequence[float]]) -> str:
    """The strides of the whole network as a list of Gin.

    >>> as_gin([(2.0, 2.0), (1.5, 2.0)])
    '[1, 1, 2.0, (1.5, 2.0)]'
    """
    texts = [str(high) if high == wide else f"({high}, {wide})" for high, wide in strides]
    return f"[1, 1, {', '.join(texts)}]"


def main() -> None:
    for guess in guesses():
        print(f"    {as_gin(scaled(guess))},")


if __name__ == "__main__":
    main()
