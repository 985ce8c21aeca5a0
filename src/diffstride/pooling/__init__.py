"""The pooling layers: spectral ones with learned or fixed strides or sizes, and spatial ones."""

from diffstride.pooling.adaptive import AdaptiveSpectralPooling
from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.frozen import FrozenPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.pooling.spatial import BlurPooling, MaxPooling, SpatialPooling

__all__ = [
    "AdaptiveSpectralPooling",
    "BlurPooling",
    "DiffStride",
    "FixedSpectralPooling",
    "FrozenPooling",
    "MaxPooling",
    "SpatialPooling",
]
