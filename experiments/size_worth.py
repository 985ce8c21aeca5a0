"""What the accuracies of guessed strides say that a map size is worth.

All guesses cost the same, so their accuracies tell the sizes of maps apart. The model is
``accuracy = c - sum(a_i * m_i^-p)``, over the axes of each map ``i`` of size ``m_i``, or with
``log(m_i)`` at ``p = 0``, fitted by least squares for some powers ``p``. A change of 1 of the
logarithm of ``m_i`` is then worth ``a_i * p * m_i^-p`` points there, or ``a_i``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffstride.spectral.axis_plan import plan_axis
from experiments.averages import Entry
from experiments.guesses import SEARCHES, for_axes
from experiments.markdown import table

POWERS = (0.0, 0.5, 1.0, 2.0)
FEWEST = 2  # guesses of a data set for each number that is fitted
AXES = 2


def map_sizes(strides: Sequence[float | Sequence[float]], size: int) -> list[list[int]]:
    """The sizes of the maps behind layers of these strides, of each axis.

    >>> map_sizes([1, (2.0, 3.0), 2], 32)
    [[32, 32], [16, 11], [8, 6]]
    """
    sizes, found = [size] * AXES, []
    for stride in strides:
        each = zip(sizes, for_axes(stride, AXES), strict=True)
        sizes = [plan_axis(size, stride).output_size for size, stride in each]
        found.append(sizes)
    return found


class Fit(NamedTuple):
    """Accuracies of guesses as a function of map sizes.

    Args:
        factors: ``a_i`` of each map.
        error: root of the mean squared difference from the accuracies, in points.
    """

    factors: Tensor
    error: float


def fit(sizes: Tensor, accuracies: Tensor, weights: Tensor, power: float) -> Fit:
    """Fit the accuracies by least squares.

    Args:
        sizes: of the maps, (guesses, maps, axes).
        accuracies: in percent, (guesses,).
        weights: how many runs each accuracy is the mean of, (guesses,).
        power: ``p``, at least 0.
    """
    known = (sizes.log() if power == 0 else -(sizes**-power)).sum(-1)
    known = torch.cat([torch.ones(len(sizes), 1), known], 1)
    root = weights.sqrt()[:, None]
    found = torch.linalg.lstsq(known * root, accuracies[:, None] * root).solution
    error = (known @ found)[:, 0].sub(accuracies).square().mean().sqrt()
    return Fit(found[1:, 0], error.item())


def worth(factor: Tensor, size: Tensor, power: float) -> Tensor:
    """What a change of 1 of the logarithm of map sizes is worth, in points for each axis."""
    return factor if power == 0 else factor * power * size**-power


def size_worth_table(entries: Sequence[Entry]) -> str:
    """A line for each data set and power: how well it fits, and the worth of the best guess's maps.

    Args:
        entries: guesses of data sets of images. Those with too few guesses to fit are left out.
    """
    lines = []
    for dataset in dict.fromkeys(entry.dataset for entry in entries):
        lines += _lines_of([entry for entry in entries if entry.dataset == dataset])
    maps = ("first map", "second map", "third map", "third at half its size")
    header = ["data set, maps", "power of the size", "error of the fit", *maps]
    return table(header, lines, align="---:")


def _lines_of(entries: Sequence[Entry]) -> list[list[str]]:
    search = SEARCHES["cifar"]
    entries = sorted(entries, key=lambda each: -each.accuracy)
    strides = [entry["strides_start"][len(search.first) :] for entry in entries]
    sizes = torch.tensor([map_sizes(each, search.shape[-1]) for each in strides]).double()
    accuracies = torch.tensor([entry.accuracy for entry in entries]).double()
    weights = torch.tensor([entry.count for entry in entries]).double()
    best = sizes[0].mean(-1)
    if len(entries) < FEWEST * (1 + len(best)):
        return []
    lines, name = [], f"{entries[0].dataset}, {', '.join(f'{each:g}' for each in best)}"
    for power in POWERS:
        found = fit(sizes, accuracies, weights, power)
        points = [*worth(found.factors, best, power), worth(found.factors[-1], best[-1] / 2, power)]
        lines.append(
            [name, f"{power:g}", f"{found.error:.2f}", *(f"{each:.1f}" for each in points)]
        )
    return lines
