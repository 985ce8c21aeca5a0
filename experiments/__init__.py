"""Grids of trainings, and the tables, pictures and pages made of their results."""

from typing import TYPE_CHECKING

from diffstride._lazy import lazy_modules

if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__, "report")  # it draws
