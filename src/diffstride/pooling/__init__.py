"""The pooling layers: spectral ones with learned or fixed strides or sizes, and spatial ones."""

from diffstride.pooling.adaptive import AdaptiveSpectralPooling
from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.frozen import FrozenPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.pooling.spatial import BlurPooling, MaxPooling, SpatialPooling
from diffstride.pooling.timm_adapter import timm_aa_layer

__all__ = [
    "AdaptiveSpectralPooling",
    "BlurPooling",
    "DiffStride",
    "FixedSpectralPooling",
    "FrozenPooling",
    "MaxPooling",
    "SpatialPooling",
    "timm_aa_layer",
]
