"""Learned resizing of other authors, against values by hand and against differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffstride import CostBudget, MultiplyAdds, freeze
from diffstride.pooling import DiffStride
from experiments.learned_resizing import DynOPool, ShapeAdaptor

LAYERS = [DynOPool, ShapeAdaptor]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("strides", [(1.0, 1.0), (1.3, 2.0), (2.0, 2.7), (5.5, 30.0)])
def test_maps_have_the_sizes_of_diffstride(layer, strides):
    x = torch.rand(2, 3, 12, 15)
    assert layer(strides)(x).shape == DiffStride(strides)(x).shape


@pytest.mark.parametrize("layer", LAYERS)
def test_a_stride_of_1_is_the_identity(layer):
    x = torch.rand(1, 2, 5, 6)
    assert torch.equal(layer((1.0, 1.0))(x), x)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("strides", [(2.0, 2.0), (1.4, 3.0)])
def test_a_constant_map_stays_constant(layer, strides):
    torch.testing.assert_close(layer(strides)(torch.full((1, 1, 9, 12), 3.0)).unique().item(), 3.0)


def test_dynopool_takes_the_largest_of_four_samples():
    """At stride 4 the samples lie in the middle of blocks of 2 x 2, so they are their means."""
    x = torch.rand(2, 3, 8, 12)
    expected = F.max_pool2d(F.avg_pool2d(x, 2), 2)
    torch.testing.assert_close(DynOPool((4.0, 4.0))(x), expected)


def test_dynopool_at_other_strides_interpolates():
    """A map of 6 to 4: samples of a line at (j + 1/2) 0.75 - 1/2, the larger of two on a slope."""
    line = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 4, 6)
    found = DynOPool((1.0, 1.5))(line)
    positions = (torch.arange(8) + 0.5) * 0.75 - 0.5
    torch.testing.assert_close(found[0, 0, 0], positions.clamp(0, 5)[1::2])


def test_dynopool_has_the_gradient_of_the_positions():
    """The output of a slope is the larger position of each cell, (k + 3/4) s - 1/2."""
    line = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 4, 8)
    layer = DynOPool((1.0, 2.0))
    layer(line)[0, 0, 0, :3].sum().backward()  # the last one lies on the border
    assert layer.strides.grad is not None
    assert layer.strides.grad[1].item() == pytest.approx(sum(k + 0.75 for k in range(3)))


def test_shape_adaptor_at_whole_strides_is_max_pooling():
    x = torch.rand(2, 3, 12, 12)
    torch.testing.assert_close(ShapeAdaptor((2.0, 3.0))(x), F.max_pool2d(x, (2, 3)))


def test_shape_adaptor_mixes_two_branches():
    """Stride 1.5 lies at 1 / 1.5 = a + (1 - a) / 2, so a = 1/3."""
    x = torch.rand(1, 2, 6, 6)
    size, mode = (4, 6), "bilinear"
    branches = (
        F.interpolate(x, size, mode=mode),
        F.interpolate(F.max_pool2d(x, (2, 1)), size, mode=mode),
    )
    found = ShapeAdaptor((1.5, 1.0))(x)
    torch.testing.assert_close(found, branches[0] / 3 + 2 * branches[1] / 3)


def test_shape_adaptor_learns_by_the_weight():
    """``da/ds = -k (k + 1) / s^2``."""
    x, layer = torch.rand(1, 2, 12, 6), ShapeAdaptor((2.4, 1.0))
    layer(x).sum().backward()
    branches = (
        F.interpolate(F.max_pool2d(x, (k, 1), ceil_mode=True), (5, 6), mode="bilinear").sum()
        for k in (2, 3)
    )
    larger, smaller = branches
    assert layer.strides.grad is not None
    assert layer.strides.grad[0].item() == pytest.approx(
        (-6 / 2.4**2 * (larger - smaller)).item(), rel=1e-4
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_a_budget_holds_the_strides(layer):
    network = nn.Sequential(layer((1.5, 2.0)), nn.Conv2d(3, 64, 3, padding=1))
    example = torch.zeros(1, 3, 40, 40)
    budget = CostBudget(network, example, fraction=0.8)
    assert 0.98 <= MultiplyAdds(network, example).value() / budget.multiply_adds <= 1


def test_costs_are_counted():
    costs = [
        MultiplyAdds(
            nn.Sequential(layer((2.0, 2.0)), nn.Identity()), torch.zeros(1, 3, 8, 8)
        ).value()
        for layer in LAYERS
    ]
    assert costs == [3 * 16 * 4 * 4, 3 * (4 * 4 * 8 + 4 * 4 * 4)]


@pytest.mark.parametrize("layer", LAYERS)
def test_one_axis_is_refused(layer):
    with pytest.raises(ValueError, match="pools two axes"):
        layer([2.0])


def test_shape_adaptor_learns_from_whole_strides():
    layer = ShapeAdaptor((2.0, 3.0))
    layer(torch.rand(1, 2, 12, 12)).square().sum().backward()
    assert layer.strides.grad is not None
    assert (layer.strides.grad != 0).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_freezing_is_refused(layer):
    network = nn.Sequential(layer((2.0, 2.0)), nn.Conv2d(3, 4, 1)).eval()
    with pytest.raises(NotImplementedError, match="cannot be frozen"):
        freeze(network, torch.zeros(1, 3, 8, 8))
