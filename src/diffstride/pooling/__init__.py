"""The pooling layers: spectral ones with learned, fixed and frozen strides, and spatial ones."""

from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.frozen import FrozenPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.pooling.spatial import BlurPooling, MaxPooling, SpatialPooling

__all__ = [
    "BlurPooling",
    "DiffStride",
    "FixedSpectralPooling",
    "FrozenPooling",
    "MaxPooling",
    "SpatialPooling",
]
