"""The mathematics of pooling one axis: window and sizes, matrices, products, their cache."""

from diffstride.spectral.axis_plan import (
    EDGES,
    Axis,
    output_size,
    plan_axis,
    plan_spectral_axis,
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
    "plan_spectral_axis",
    "pooling_matrix",
    "smallest_stride",
    "transition_width",
    "window",
]
