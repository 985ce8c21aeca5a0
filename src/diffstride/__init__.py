"""Downsampling with learnable strides for PyTorch."""

from diffstride import convnet, functional, pooling, reference, resnet, spectrum
from diffstride.budget import CostBudget
from diffstride.convert import convert
from diffstride.cost import MultiplyAdds, stride_penalty
from diffstride.freeze import freeze
from diffstride.functional import diff_stride, spectral_pool
from diffstride.pooling import (
    BlurPooling,
    DiffStride,
    FixedSpectralPooling,
    MaxPooling,
    SpatialPooling,
    stride_layers,
)
from diffstride.report import report

__version__ = "0.1.0"

__all__ = [
    "BlurPooling",
    "CostBudget",
    "DiffStride",
    "FixedSpectralPooling",
    "MaxPooling",
    "MultiplyAdds",
    "SpatialPooling",
    "convert",
    "convnet",
    "diff_stride",
    "freeze",
    "functional",
    "pooling",
    "reference",
    "report",
    "resnet",
    "spectral_pool",
    "spectrum",
    "stride_layers",
    "stride_penalty",
]
