"""Convert a network's strides into learnable ones, report it, freeze and save the result."""

from diffstride.conversion.converter import convert
from diffstride.conversion.freezing import freeze
from diffstride.conversion.rebuilding import rebuild
from diffstride.conversion.recipes import recipe
from diffstride.conversion.record import Conversion
from diffstride.conversion.reporting import report
from diffstride.conversion.saving import load, save

__all__ = ["Conversion", "convert", "freeze", "load", "rebuild", "recipe", "report", "save"]
