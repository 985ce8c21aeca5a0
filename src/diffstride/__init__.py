"""Downsampling with learnable strides for PyTorch."""

from diffstride import functional, pooling, reference, spectrum
from diffstride.functional import diff_stride, spectral_pool
from diffstride.pooling import DiffStride, FixedSpectralPooling, SpatialPooling, stride_layers

__version__ = "0.1.0"

__all__ = [
    "DiffStride",
    "FixedSpectralPooling",
    "SpatialPooling",
    "diff_stride",
    "functional",
    "pooling",
    "reference",
    "spectral_pool",
    "spectrum",
    "stride_layers",
]
