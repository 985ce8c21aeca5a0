"""One axis: window, output length, matrix and its derivative."""

import math

import pytest
import torch
from conftest import PUBLISHED, WINDOWED, literal_pool_axis, literal_window

from diffstride import spectral
from diffstride.spectral.matrix import ramp_factors

SIZES = (1, 2, 3, 4, 5, 7, 8, 16, 31, 32)
STRIDES = (1.0, 1.14, 1.5, 2.0, 2.7, 3.0, 4.0, 40.0)


@pytest.mark.parametrize("edge", spectral.EDGES)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", SIZES)
def test_matrix_equals_complex_fft(size: int, stride: float, edge: str) -> None:
    for factor in (0.5, 2.0, 4.0):
        for cropping in (True, False):
            matrix = spectral.pooling_matrix(
                size, stride, factor, edge, cropping, straight_through=False
            )
            gains = literal_window(size, stride, factor, edge)
            identity = torch.eye(size, dtype=torch.float64)
            expected = literal_pool_axis(identity, gains, matrix.shape[0], 0)
            torch.testing.assert_close(matrix, expected, rtol=0, atol=2e-15)


@pytest.mark.parametrize("size", SIZES)
def test_all_ones_window_of_full_length_is_the_identity(size: int) -> None:
    matrix = spectral.axis_matrix(spectral.plan_axis(size, 1.0))
    torch.testing.assert_close(matrix, torch.eye(size, dtype=torch.float64), rtol=0, atol=2e-15)


@pytest.mark.parametrize("edge", spectral.EDGES)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_the_matrix_sum_to_one(size: int, stride: float, edge: str) -> None:
    rows = spectral.pooling_matrix(size, stride, edge=edge, straight_through=False).sum(1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("size", "stride", "edge", "expected"),
    [
        (32, 2.0, "passband", 24),
        (24, 2.0, "passband", 20),
        (20, 2.0, "passband", 18),
        (32, 1.0, "passband", 32),
        (8, 2.0, "passband", 8),
        (32, 2.0, "stopband", 16),
        (31, 2.0, "stopband", 16),
        (32, 3.0, "stopband", 11),
        (5, 40.0, "stopband", 1),
        (2, 1.0, "stopband", 2),
    ],
)
def test_output_size(size: int, stride: float, edge: str, expected: int) -> None:
    assert spectral.output_size(size, stride, edge=edge) == expected
    assert spectral.output_size(size, stride, edge=edge, cropping=False) == size


def test_transition_width_and_smallest_stride() -> None:
    assert spectral.transition_width(32, 4.0, "passband") == 4.0
    assert spectral.transition_width(8, 4.0, "passband") == 2.0
    assert spectral.transition_width(64, 4.0, "stopband") == 4.0
    assert spectral.transition_width(16, 4.0, "stopband") == 2.0
    assert spectral.transition_width(4, 4.0, "stopband") == 1.0
    assert spectral.smallest_stride(32, 4.0, "passband") == 32 / 28
    assert spectral.smallest_stride(32, 4.0, "stopband") == 1.0


@pytest.mark.parametrize("edge", spectral.EDGES)
@pytest.mark.parametrize(("size", "stride"), [(32, 2.0), (31, 1.7), (16, 3.3), (9, 2.2), (4, 1.8)])
def test_derivative_equals_central_difference(size: int, stride: float, edge: str) -> None:
    # Away from jumps of the output length and kinks of the window.
    stride += 0.0123
    axis = spectral.plan_axis(size, stride, edge=edge, straight_through=False)
    synthesis, analysis = ramp_factors(size, axis.output_size, axis.ramp)
    derivative = axis.slope * synthesis @ analysis.T
    step = 1e-6
    after = spectral.pooling_matrix(size, stride + step, edge=edge, straight_through=False)
    before = spectral.pooling_matrix(size, stride - step, edge=edge, straight_through=False)
    torch.testing.assert_close(derivative, (after - before) / (2 * step), rtol=0, atol=1e-8)
    assert derivative.abs().max() > 1e-3


def test_the_ramp_includes_both_of_its_ends() -> None:
    assert list(spectral.plan_axis(32, 2.0, **PUBLISHED).ramp) == [8, 9, 10, 11, 12]
    assert list(spectral.plan_axis(32, 2.0, **WINDOWED).ramp) == [
        4,
        5,
        6,
        7,
        8,
    ]


@pytest.mark.parametrize("edge", spectral.EDGES)
def test_some_bin_is_always_on_the_ramp(edge: str) -> None:
    for size in range(4, 65):
        for stride in (1.0, 1.01, 1.3, 2.0, math.pi, size / 2, 0.9 * size):
            assert (
                len(spectral.plan_axis(size, stride, edge=edge, straight_through=False).ramp) > 0
            ), (size, stride)


@pytest.mark.parametrize(
    "function",
    [spectral.plan_axis, spectral.output_size, spectral.pooling_matrix],
)
def test_an_unknown_edge_is_refused(function) -> None:
    with pytest.raises(ValueError, match="one of 'passband', 'stopband', but got 'pasband'"):
        function(32, 2.0, edge="pasband")
    for function in (spectral.transition_width, spectral.smallest_stride):
        with pytest.raises(ValueError, match="but got 'Passband'"):
            function(32, edge="Passband")
