"""The public names of the library, which `diffstride` loads when the first one is used."""

from diffstride import convnet, functional, pooling, reference, resnet, spectral
from diffstride.conversion import convert, freeze, load, rebuild, recipe, report, save
from diffstride.cost import CostBudget, MeasuredStrides, MultiplyAdds
from diffstride.functional import diff_stride, spectral_pool
from diffstride.pooling import (
    AdaptiveSpectralPooling,
    BlurPooling,
    DiffStride,
    FixedSpectralPooling,
    MaxPooling,
    SpatialPooling,
)
from diffstride.strides import (
    attach,
    parameter_groups,
    project_strides,
    stride_layers,
    stride_penalty,
    stride_scalars,
)

__all__ = [
    "AdaptiveSpectralPooling",
    "BlurPooling",
    "CostBudget",
    "DiffStride",
    "FixedSpectralPooling",
    "MaxPooling",
    "MeasuredStrides",
    "MultiplyAdds",
    "SpatialPooling",
    "attach",
    "convert",
    "convnet",
    "diff_stride",
    "freeze",
    "functional",
    "load",
    "parameter_groups",
    "pooling",
    "project_strides",
    "rebuild",
    "recipe",
    "reference",
    "report",
    "resnet",
    "save",
    "spectral",
    "spectral_pool",
    "stride_layers",
    "stride_penalty",
    "stride_scalars",
]
