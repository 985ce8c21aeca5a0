"""Multiply-adds as a function of strides, and budgets for them."""

from diffstride.cost.budget import CostBudget
from diffstride.cost.measured_strides import MeasuredStrides
from diffstride.cost.multiply_adds import MultiplyAdds

__all__ = ["CostBudget", "MeasuredStrides", "MultiplyAdds"]
