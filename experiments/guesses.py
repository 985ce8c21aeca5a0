"""Strides that somebody might guess, all scaled to one cost: the yardstick of learned strides.

python3 -m experiments.guesses NAME    # prints the list of a search: cifar, fsdd_mel or fsdd_wave
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from random import Random
from typing import Any

import torch
from torch import nn

from diffstride import CostBudget, DiffStride, MultiplyAdds
from diffstride.resnet import resnet18
from diffstride.spectral.axis_plan import Axis, plan_axis

LARGEST = 4.0  # of random strides, before they are scaled
FACTORS = [exp(step / 50) for step in range(-100, 101)]  # from 0.14 to 7.4
COMMON = {"pool_stem": False, "order": "before", "pooling_cls": DiffStride}

Stride = tuple[float, ...]  # one for each axis
Guess = tuple[Stride, ...]  # of the three blocks that pool


@dataclass(frozen=True)
class Search:
    """Guesses of one network.

    Attributes:
        network: arguments of `resnet18`.
        first: its strides before those of a guess.
        shape: shape of an example, without the batch.
        cost: multiply-adds that all guesses are scaled to.
        natural: strides that come to mind; a number stands for all axes.
        square: number of random guesses with one stride for all axes.
        oblong: number of random guesses with a stride for each axis.
    """

    network: dict[str, Any]
    first: tuple[float, ...]
    shape: tuple[int, ...]
    cost: float
    natural: tuple[tuple[float | Stride, ...], ...]
    square: int = 0
    oblong: int = 0

    @property
    def example(self) -> torch.Tensor:
        """An input of the network."""
        return torch.zeros(1, *self.shape)

    def build(self, guess: Sequence[Any]) -> nn.Module:
        """The network with strides of a guess."""
        return resnet18([*self.first, *guess], **COMMON, **self.network)

    def guesses(self) -> list[Guess]:
        """All guesses, natural ones first, before they are scaled."""
        axes = len(self.shape) - 1
        natural = [tuple(for_axes(each, axes) for each in guess) for guess in self.natural]
        return [*natural, *random_guesses(self.square, self.oblong, axes)]

    def scaled(self, guess: Guess) -> Guess:
        """The strides times one factor, none below 1, such that the network costs `cost`.

        `CostBudget` then moves map sizes until a hundredth of the cost is unused at most.
        """
        cost = MultiplyAdds(self.build(guess), self.example)

        def times(factor: float) -> Guess:
            return tuple(tuple(max(1.0, each * factor) for each in stride) for stride in guess)

        def distance(factor: float) -> float:
            strides = dict(zip(cost.layers, times(factor), strict=True))
            return abs(cost.value(strides) - self.cost)

        network = self.build(times(min(FACTORS, key=distance)))
        budget = CostBudget(network, self.example, multiply_adds=self.cost)
        maps = budget.cost.maps()
        return tuple(tuple(map(short, maps[name])) for name in budget.cost.layers)


SEARCHES = {
    # The cost is that of strides of 2, within 2 % of that of the strided network.
    "cifar": Search(
        {"width": 16, "num_output_classes": 100},
        (1, 1),
        (3, 32, 32),
        35.6e6,
        ((2, 2, 2), (1, 2, 4), (4, 2, 1), (3, 1, 4), (1, 1, 8), (2, 1, 4), (2, 4, 1), (8, 1, 1)),
        square=4,
        oblong=4,
    ),
    # The cost of the strided network. The axes are frequency and time.
    "fsdd_mel": Search(
        {"width": 8, "num_output_classes": 10, "in_channels": 1},
        (2, 1),
        (1, 64, 64),
        8.73e6,
        (
            (2, 2, 2),
            ((4, 2), 2, (1, 2)),
            ((2, 4), 2, (2, 1)),
            ((3, 1.5), (3, 1.5), (3, 1.5)),
            ((1.5, 3), (1.5, 3), (1.5, 3)),
            ((4, 1), (1, 4), 2),
            ((2, 1), 2, (2, 4)),
            ((1, 2), 2, (4, 2)),
        ),
    ),
    "fsdd_wave": Search(
        {
            "width": 8,
            "num_output_classes": 10,
            "in_channels": 1,
            "num_axes": 1,
            "kernel_size": 9,
            "stem_kernel_size": 9,
        },
        (4, 1),
        (1, 8000),
        17.14e6,
        ((4, 4, 4), (2, 4, 8), (8, 4, 2), (2, 2, 16), (16, 2, 2), (2, 8, 4), (8, 2, 4), (5, 4, 3)),
    ),
}


def for_axes(stride: float | Sequence[float], axes: int) -> Stride:
    """A stride for each axis; a number stands for all."""
    return tuple(stride) if isinstance(stride, Sequence) else (float(stride),) * axes


def random_guesses(square: int, oblong: int, axes: int, seed: int = 0) -> Iterator[Guess]:
    """Strides whose logarithms are uniform between those of 1 and `LARGEST`."""
    source = Random(seed)

    def draw() -> float:
        return exp(source.uniform(0, log(LARGEST)))

    for _ in range(square):
        yield tuple((each,) * axes for each in (draw(), draw(), draw()))
    for _ in range(oblong):
        yield tuple(tuple(draw() for _ in range(axes)) for _ in range(3))


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


def as_gin(first: Sequence[float], guess: Guess) -> str:
    """The strides of the whole network as a list of Gin.

    >>> as_gin((1, 1), ((2.0, 2.0), (1.5, 2.0)))
    '[1, 1, 2.0, (1.5, 2.0)]'
    """
    texts = [str(stride[0] if len(set(stride)) == 1 else stride) for stride in guess]
    return f"[{', '.join([*map(str, first), *texts])}]"


def main(arguments: Sequence[str] | None = None) -> None:
    summary = "Print the list of guessed strides of a search, for a grid."
    parser = argparse.ArgumentParser("python3 -m experiments.guesses", description=summary)
    parser.add_argument("search", choices=SEARCHES, help="name of the search")
    search = SEARCHES[parser.parse_args(arguments).search]
    for guess in search.guesses():
        print(f"    {as_gin(search.first, search.scaled(guess))},")


if __name__ == "__main__":
    main()
