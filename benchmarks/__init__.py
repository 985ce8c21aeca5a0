"""Time, memory and accuracy of the pooling beside its alternatives; see the Makefile."""

from typing import TYPE_CHECKING

from diffstride._lazy import lazy_modules

if not TYPE_CHECKING:
    _DRAWING = "gain_picture", "step_picture", "walkthrough_picture"
    __getattr__ = lazy_modules(__name__, *_DRAWING)
