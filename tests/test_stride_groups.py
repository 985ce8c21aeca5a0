"""Which calls must share a stride, and which strides cannot be learned."""

import pytest
import torch
import torch.nn.functional as F
from networks import Net, strided
from torch import nn

from diffstride import DiffStride
from diffstride.graph.group_search import find_stride_groups
from diffstride.graph.stride_conflicts import StrideConflictError
from diffstride.graph.stride_groups import UnlearnedAxes
from diffstride.graph.tracer import trace


def find_groups(net, size=(16, 20), names=None):
    traced = trace(net, torch.zeros(2, 4, *size))
    calls = [
        node
        for node in traced.graph.nodes
        if node.op == "call_module"
        and (node.target in names if names else hasattr(traced.module(node), "stride"))
    ]
    return find_stride_groups(traced, dict.fromkeys(calls, UnlearnedAxes()))


def names_of_groups(net, **kwargs):
    members = find_groups(net, **kwargs).members()
    return [[str(call.target) for call in calls] for calls in members]


def shuffle(x, groups=2):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


MEETINGS = {
    "addition": lambda m, x: m.a(x) + m.b(x),
    "concatenation": lambda m, x: torch.cat([m.a(x), m.b(x)], dim=1),
    "product after a shuffle": lambda m, x: shuffle(m.a(x)) * F.relu(m.b(x)),
    "channels last": lambda m, x: m.a(x).permute(0, 2, 3, 1) + m.b(x).permute(0, 2, 3, 1),
    "flattened": lambda m, x: m.a(x).flatten(2) + m.b(x).flatten(2),
    "matrix product": lambda m, x: m.a(x).flatten(2) @ m.b(x).flatten(2).transpose(1, 2),
    "stack": lambda m, x: torch.stack([m.a(x), m.b(x)]).sum(0),
}


@pytest.mark.parametrize("meeting", MEETINGS)
def test_branches_that_meet_share_a_stride(meeting):
    net = Net(MEETINGS[meeting], a=strided(3), b=strided(1))
    assert names_of_groups(net) == [["a", "b"]]


def test_calls_in_a_row_and_globally_pooled_branches_do_not_share():
    net = Net(
        lambda m, x: m.b(m.a(x)).mean((2, 3)) + m.c(x).amax((2, 3)),
        a=strided(),
        b=strided(),
        c=strided(),
    )
    assert names_of_groups(net) == [["a"], ["b"], ["c"]]


def test_a_gate_of_size_one_does_not_share_with_its_map():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), strided(1, stride=1), nn.Sigmoid())
    net = Net(lambda m, x: m.a(x) * m.gate(m.b(x)), a=strided(), b=strided(), gate=gate)
    assert names_of_groups(net, names=("a", "b")) == [["a"], ["b"]]


def test_sharing_the_last_strides_means_sharing_the_first():
    """Two branches share their second stride, so they must share the first."""
    net = Net(
        lambda m, x: m.a2(m.a1(x)) + m.b2(m.b1(x)),
        a1=strided(),
        a2=strided(),
        b1=strided(1),
        b2=strided(1),
    )
    assert sorted(names_of_groups(net)) == [["a1", "b1"], ["a2", "b2"]]


def test_a_stride_beside_an_identity_shortcut_is_refused():
    net = Net(lambda m, x: x + m.b(F.relu(m.a(x))), a=strided(stride=1), b=strided(stride=1))
    with pytest.raises(
        StrideConflictError, match=r"meets maps in add in the model itself"
    ) as error:
        find_groups(net)
    assert [call.target for call in error.value.calls] == ["b"]


def test_two_strides_against_one_are_refused():
    net = Net(lambda m, x: m.b(m.a(x)) + m.c(x), a=strided(), b=strided(), c=strided(1, stride=4))
    with pytest.raises(StrideConflictError, match="b and c meet, but their inputs have passed"):
        find_groups(net)


def test_upsampling_by_a_factor_is_refused_and_to_a_size_is_accepted():
    by_factor = Net(lambda m, x: F.interpolate(m.a(x), scale_factor=2.0) + x, a=strided())
    with pytest.raises(StrideConflictError, match="meets maps in add") as error:
        find_groups(by_factor)
    assert [call.target for call in error.value.calls] == ["a"]
    to_size = Net(lambda m, x: F.interpolate(m.a(x), size=x.shape[-2:]) + x, a=strided())
    assert names_of_groups(to_size) == [["a"]]


@pytest.mark.parametrize("learned", [1, 2, 3])
@pytest.mark.parametrize("staying", [1, 2, 3])
@pytest.mark.parametrize("meet", ["rounded down", "enlarged"])
def test_maps_whose_sizes_agree_by_chance_are_refused(learned, staying, meet):
    """Halves rounded up and down are equal for even sizes, which are half of all sizes."""

    def forward(m, x):
        x = m.down(m.stem(x))
        if meet == "enlarged":
            return torch.cat([x, F.interpolate(m.body(x), scale_factor=2)], 1)
        return m.body(x) + F.avg_pool1d(x, 2)

    def halvings(count):
        return nn.Sequential(*(nn.Conv1d(8, 8, 3, 2, 1) for _ in range(count)))

    net = Net(forward, stem=halvings(learned), down=halvings(staying), body=halvings(1))
    traced = trace(net, torch.zeros(1, 8, 512))
    calls = [node for node in traced.graph.nodes if str(node.target).startswith("stem")]
    with pytest.raises(StrideConflictError, match=r"meets maps in .* whose size does not follow"):
        find_stride_groups(traced, dict.fromkeys(calls, UnlearnedAxes()))


def test_attention_over_volumes_is_analysed():
    def forward(m, x):
        tokens = m.a(x).flatten(2)
        return torch.softmax(tokens.transpose(1, 2) @ tokens, -1)

    net = Net(forward, a=nn.Conv3d(1, 4, 3, 2, 1))
    traced = trace(net, torch.zeros(1, 1, 8, 16, 16))
    calls = [node for node in traced.graph.nodes if str(node.target) == "a"]
    assert find_stride_groups(traced, dict.fromkeys(calls, UnlearnedAxes())).members() == [calls]


def test_the_error_of_an_operation_of_one_size_is_quoted():
    net = Net(lambda m, x: m.head(m.a(x).flatten(1)), a=strided(), head=nn.Linear(320, 5))
    with pytest.raises(StrideConflictError, match=r"learned strides change it \(.* X .*\): put ad"):
        find_groups(net)


def test_a_linear_layer_behind_flatten_is_named():
    net = Net(lambda m, x: m.head(m.a(x).flatten(1)), a=strided(), head=nn.Linear(4 * 8 * 10, 5))
    with pytest.raises(
        StrideConflictError, match=r"head \(Linear\) accepts .* leave out 'a'"
    ) as error:
        find_groups(net)
    assert error.value.calls == []
    pooled = Net(lambda m, x: m.head(m.pool(m.a(x)).flatten(1)), a=strided(),
                 pool=nn.AdaptiveAvgPool2d(2), head=nn.Linear(16, 5))  # fmt: skip
    assert names_of_groups(pooled, names=("a",)) == [["a"]]


def test_calls_of_one_pooling_layer_share():
    pool = DiffStride(2.0, edge="stopband")
    net = Net(lambda m, x: m.conv(m.pool(x)) + m.pool(m.other(x)), pool=pool,
              conv=strided(stride=1), other=strided(stride=1))  # fmt: skip
    assert names_of_groups(net, names=("pool",)) == [["pool", "pool"]]
