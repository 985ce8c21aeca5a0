"""Convert a network's strides into learnable ones, report what was done, and freeze the result."""

from diffstride.conversion.converter import convert
from diffstride.conversion.freezing import freeze
from diffstride.conversion.reporting import Conversion, report

__all__ = ["Conversion", "convert", "freeze", "report"]
