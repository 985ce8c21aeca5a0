"""Strides as text: rounding never changes the number of samples that they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffstride import CostBudget, DiffStride, FixedSpectralPooling, report
from diffstride._stride_text import stride_text, strides_text
from diffstride.spectral import output_size
from diffstride.training.run_summary import format_summary


@given(st.integers(1, 300), st.floats(1, 300, width=32), st.sampled_from([".2f", ".3f", ".4g"]))
def test_the_text_makes_the_same_number_of_samples(size, stride, form):
    text = stride_text(stride, size, form)
    assert output_size(size, float(text)) == output_size(size, stride)
    unit = 10 ** -int(form[1]) if form[2] == "f" else 10 ** (len(str(int(stride))) - 4)
    assert float(text) == pytest.approx(stride, abs=unit)


@pytest.mark.parametrize("size", [7, 32, 56, 224])
def test_a_stride_beside_a_change_of_size_has_few_digits(size):
    for samples in range(1, size):
        boundary = size / samples
        for stride in (boundary * (1 - 3e-7), boundary, boundary * (1 + 3e-7)):
            text = stride_text(stride, size)
            assert output_size(size, float(text)) == output_size(size, stride)
            assert len(text.partition(".")[2]) <= (2 if size < 100 else 4), text


@pytest.mark.parametrize("stride", [1.9999, 2.0001, 1.00001, 2.99999])
def test_without_a_size_a_whole_number_stands_for_itself(stride):
    assert float(stride_text(stride)) % 1 != 0
    assert float(stride_text(stride, form=".4g")) % 1 != 0


def test_digits_are_as_few_as_before_where_they_explain_the_map():
    assert strides_text((2.0, 1.7)) == "2.00 x 1.70"
    assert stride_text(torch.tensor(1.4).item(), form=".4g") == "1.4"
    assert stride_text(2.0001, 32) == "2.00"  # 16 samples, as 2 makes
    assert stride_text(float("nan")) == "nan"


def test_a_stride_a_little_below_two_is_printed_as_such_everywhere():
    x = torch.rand(1, 8, 32, 32)
    net = nn.Sequential(DiffStride((1.9999, 2.0)), nn.Conv2d(8, 8, 3, padding=1))
    assert "strides=(1.9999, 2)" in repr(net[0])
    assert "strides=(1.9999, 2)" in repr(FixedSpectralPooling((1.9999, 2.0)))
    line = str(report(net, x)).splitlines()[1]
    assert "1.99 x 2.00" in line
    assert "-> 17 x 16" in line
    budget = CostBudget(net, x)
    net[0].strides.data = torch.tensor([1.9999, 2.0])
    assert "0: 1.99 x 2.00" in repr(budget)
    summary = {"test_accuracy": 90.0, "strides": {"pool": [1.9999, 2.0]}, "epochs": 1}
    costs = {"multiply_adds_start": 1e6, "multiply_adds_end": 1e6, "seconds": 1.0}
    assert "1.9999 x 2.000" in format_summary(summary | costs)
    assert "after 1 epoch\n" in format_summary(summary | costs)


def test_a_summary_prints_strides_by_the_sizes_of_their_maps():
    facts = {"test_accuracy": 90.0, "strides": {"pool": [2.000001, 1.9999]}, "epochs": 2}
    facts |= {"multiply_adds_start": 1e6, "multiply_adds_end": 1e6, "seconds": 1.0}
    assert "pool    2.000001 x 1.9999" in format_summary(facts)  # of an older run
    assert "pool    2.000 x 1.999\n" in format_summary(facts | {"input_sizes": {"pool": [32, 32]}})
    assert "pool    2.000001 x" in format_summary(facts | {"input_sizes": {"pool": []}})
