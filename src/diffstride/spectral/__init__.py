"""Pooling by matrices and Fourier transforms: the plan of an axis, its matrix, the products."""

from diffstride.spectral.axis_plan import (
    EDGES,
    Axis,
    output_size,
    plan_axis,
    smallest_stride,
    transition_width,
    window,
)
from diffstride.spectral.matrix import axis_matrix, pooling_matrix

__all__ = [
    "EDGES",
    "Axis",
    "axis_matrix",
    "output_size",
    "plan_axis",
    "pooling_matrix",
    "smallest_stride",
    "transition_width",
    "window",
]
