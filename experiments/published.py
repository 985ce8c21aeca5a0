"""Accuracies that the published system reports, to show beside ours."""

from typing import NamedTuple

Strides = tuple[float, ...]

SHORT: Strides = (1, 1, 2, 2, 2)
LONG: Strides = (1, 1, 3, 2, 3)


class Figure(NamedTuple):
    """Mean and standard deviation of the accuracy in percent, and MACs of one image."""

    accuracy: float
    spread: float
    multiply_adds: float


# From the README of the published system: ResNet-18 of width 64, 400 epochs, three runs each. That
# page states no costs. These are the MACs at the initial strides, as `measure_cost` counts them.
COSTS = {
    ("strided", SHORT): 555e6,
    ("strided", LONG): 325e6,
    ("spectral", SHORT): 731e6,
    ("spectral", LONG): 458e6,
    ("diffstride", SHORT): 4217e6,
    ("diffstride", LONG): 2928e6,
}
ACCURACIES = {
    ("cifar10", "strided", SHORT): (91.06, 0.04),
    ("cifar10", "strided", LONG): (89.21, 0.27),
    ("cifar10", "spectral", SHORT): (93.49, 0.05),
    ("cifar10", "spectral", LONG): (92.00, 0.08),
    ("cifar10", "diffstride", SHORT): (94.20, 0.06),
    ("cifar10", "diffstride", LONG): (94.19, 0.15),
    ("cifar100", "strided", SHORT): (65.75, 0.39),
    ("cifar100", "strided", LONG): (60.82, 0.42),
    ("cifar100", "spectral", SHORT): (72.86, 0.23),
    ("cifar100", "spectral", LONG): (67.74, 0.43),
    ("cifar100", "diffstride", SHORT): (76.08, 0.23),
    ("cifar100", "diffstride", LONG): (76.09, 0.06),
}


def find_published(
    dataset: str, pooling: str, strides: Strides, edge: str | None = None
) -> Figure | None:
    """The published figure for these options, if any. DiffStride was published with one edge.

    >>> find_published("cifar10", "strided", (1, 1, 2, 2, 2))
    Figure(accuracy=91.06, spread=0.04, multiply_adds=555000000.0)
    """
    name = "diffstride" if pooling == "reference" else pooling
    if name == "diffstride" and edge != "passband":
        return None
    found = ACCURACIES.get((dataset, name, strides))
    return Figure(*found, COSTS[name, strides]) if found else None
