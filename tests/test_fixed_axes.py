"""Layers and networks in which some axes have one length and others learn their strides."""

import io

import pytest
import torch
from networks import Net, counted, move_strides, strided
from torch import nn

import diffstride
from diffstride import (
    AdaptiveSpectralPooling,
    CostBudget,
    DiffStride,
    MeasuredStrides,
    MultiplyAdds,
    convert,
    freeze,
    report,
    stride_layers,
)
from diffstride.conversion.pooled_module import CropPad, attach_pooling

X = torch.rand(2, 3, 24, 30, dtype=torch.float64)
SOUND = torch.rand(2, 1, 32, 40)


def mixed(stride=1.7, **options):
    return DiffStride((stride, 1.0), fixed_size=(None, 7), **options)


# The layer


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize("edge", ["stopband", "passband"])
@pytest.mark.parametrize("length", [7, 30, 41])
def test_it_pools_one_axis_by_its_stride_and_the_other_to_its_length(
    length, edge, straight_through
):
    options = {"edge": edge, "straight_through": straight_through}
    both = DiffStride((1.7, 1.0), fixed_size=(None, length), **options).double()
    first = DiffStride([1.7], **options).double()
    then = AdaptiveSpectralPooling([length])
    x, weights = X.clone().requires_grad_(), torch.rand_like(both(X))
    (both(x) * weights).sum().backward()

    other = X.clone().requires_grad_()
    y = first(other.transpose(2, 3).flatten(0, 2).unsqueeze(1)).squeeze(1)
    y = y.unflatten(0, (2, 3, 30)).transpose(2, 3)
    y = then(y.flatten(0, 2).unsqueeze(1)).squeeze(1).unflatten(0, y.shape[:3])
    torch.testing.assert_close(both(X), y)
    (y * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert first.strides.grad.abs() > 1e-3
    torch.testing.assert_close(both.strides.grad[:1], first.strides.grad)
    assert both.strides.grad[1] == 0


def test_sizes_and_costs():
    layer = mixed(2.0)
    assert layer.output_size((24, 30)) == (12, 7)
    assert layer.output_size((24, 4)) == (12, 7)
    assert (layer.fixed_axes, layer.kept_axes, layer.fixes_size) == ((1,), (), False)
    net = nn.Sequential(layer, nn.Conv2d(3, 5, 1))
    cost = MultiplyAdds(net, X.float())
    assert cost.value() == counted(net.eval(), X.float())
    assert cost.value({"0": (4.0, 1.0)}) == counted(
        nn.Sequential(mixed(4.0), nn.Conv2d(3, 5, 1)).eval(), X.float()
    )
    cost().backward()
    by_stride = layer.strides.grad
    assert by_stride[0] < 0
    assert by_stride[1] == 0


def test_the_stride_of_a_fixed_axis_stays():
    layer = mixed(lower_limit_stride=1.5)
    layer.strides.data = torch.tensor([1.0, 3.0])
    layer.project_()
    assert layer.strides.tolist() == [1.5, 1.0]
    assert layer.limits == [(1.5, float("inf")), (1.0, 1.0)]


def test_it_shows_what_it_fixes():
    assert repr(mixed()) == (
        "DiffStride(strides=(1.7, 1), smoothness_factor=4, edge='stopband', "
        "straight_through=True, fixed_size=(None, 7), learning)"
    )


@pytest.mark.parametrize(
    ("fixed_size", "options", "message"),
    [
        ((None,), {}, "for each of 2 axes, but got"),
        (7, {}, "for each of 2 axes, but got 7"),
        ((None, 0), {}, "whole numbers of at least 1"),
        ((None, 1.5), {}, "whole numbers of at least 1"),
        ((None, None), {}, "leave it out to fix none"),
        ((5, 7), {"strides": (1.0, 1.0)}, "AdaptiveSpectralPooling to fix all"),
        ((7, None), {}, "strides must be 1 on the axes"),
        ((None, 7), {"cropping": False, "straight_through": False}, "with cropping=False"),
        ((None, 7), {"strides": (1.0, 1.0), "shared_stride": True}, "with shared_stride=True"),
    ],
)
def test_errors(fixed_size, options, message):
    with pytest.raises(ValueError, match=message):
        DiffStride(**{"strides": (1.7, 1.0), "fixed_size": fixed_size} | options)


def test_a_frozen_layer_is_equal():
    frozen = freeze(nn.Sequential(mixed()), X.float())
    torch.testing.assert_close(frozen(X.float()), mixed()(X.float()))
    program = torch.export.export(frozen.eval(), (X.float(),)).module()
    torch.testing.assert_close(program(X.float()), mixed()(X.float()))
    again = diffstride.rebuild(nn.Sequential(mixed()), diffstride.recipe(frozen))
    assert again[0].fixed_size == (None, 7)
    assert again[0].plans == frozen[0].plans


def test_a_compiled_layer_is_equal():
    torch._dynamo.reset()
    layer = mixed().eval()
    x = X.float()
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), layer(x))


# Networks


class Reader(nn.Module):
    """Frequencies become features, frames go into a GRU."""

    def __init__(self, strides=((2, 2), (2, 2), (2, 1))):
        super().__init__()
        channels = (1, 8, 8, 8)
        pairs = zip(channels, channels[1:], strides, strict=False)
        convs = (nn.Conv2d(i, o, 3, stride=s, padding=1) for i, o, s in pairs)
        self.body = nn.Sequential(*(nn.Sequential(conv, nn.ReLU()) for conv in convs))
        self.gru = nn.GRU(8 * 4, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        frames, _ = self.gru(self.body(x).permute(0, 3, 1, 2).flatten(2))
        return self.head(frames)


@pytest.mark.parametrize("keep_ones", [False, True])
def test_the_frames_of_a_recurrent_network_follow_strides_and_the_length_of_the_sound(keep_ones):
    net = Reader()
    converted = convert(net, SOUND, keep_ones=keep_ones, order="before")
    layers = [block[0].pooling for block in converted.body]
    assert [layer.fixed_size for layer in layers] == [None, None, (4, None)]
    assert isinstance(layers[2], AdaptiveSpectralPooling) == keep_ones
    assert converted(SOUND).shape == net(SOUND).shape == (2, 10, 5)
    assert converted(torch.rand(2, 1, 32, 80)).shape == (2, 20, 5)
    with torch.no_grad():
        layers[0].strides.copy_(torch.tensor([2.5, 1.0]))
    assert converted(SOUND).shape == (2, 20, 5)

    converted(SOUND).square().mean().backward()
    assert all(layer.strides.grad.abs().max() > 0 for layer in stride_layers(converted).values())
    cost = MultiplyAdds(converted, SOUND)
    for seed in range(3):
        move_strides(converted, seed)
        assert cost.value() == counted(converted.eval(), SOUND)
    frozen = freeze(converted, SOUND)
    torch.testing.assert_close(frozen(SOUND), converted(SOUND), rtol=1e-4, atol=1e-5)


def test_a_budget_and_measured_strides_move_what_learns():
    torch.manual_seed(0)
    converted = convert(Reader(), SOUND, order="before")
    budget = CostBudget(converted, SOUND, 0.6)
    assert budget.cost.value() <= budget.multiply_adds
    last = converted.body[2][0].pooling
    assert last.strides[1] == 1
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.1)
    measured = MeasuredStrides(budget, steps=40)
    before = [layer.strides.detach().clone() for layer in stride_layers(converted).values()]
    for _ in range(40):
        loss = converted(SOUND).square().mean()
        loss.backward()
        optimizer.step()
        measured.step(lambda: converted(SOUND).square().mean())
        assert budget.cost.value() <= budget.multiply_adds
        assert last.strides[0] == 1
    after = [layer.strides for layer in stride_layers(converted).values()]
    assert any(not one.equal(two) for one, two in zip(before, after, strict=True))


def test_report_says_which_axes_are_pinned():
    converted = convert(Reader(), SOUND, order="before")
    rows = list(report(converted))
    assert [row.pinned for row in rows] == [(), (), (0,)]
    assert "pinned x 1.00" in str(report(converted))
    assert "pinned x 1.00" in str(report(freeze(converted, SOUND), SOUND))


def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    converted = convert(Reader(), SOUND)
    move_strides(converted, 1)
    diffstride.save(converted, tmp_path / "net.pt")
    loaded = diffstride.load(Reader(), tmp_path / "net.pt")
    assert loaded.body[2][0].pooling.fixed_size == (4, None)
    torch.testing.assert_close(loaded(SOUND), converted(SOUND))
    buffer = io.BytesIO()
    torch.save(converted, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    torch.testing.assert_close(again(SOUND), converted(SOUND))


def test_one_axis_after_the_other_is_pinned_where_both_must_stay():
    def forward(net, x):
        x = net.b(net.a(x))
        return net.read(x.flatten(2)) + net.rows(x.mean(3).flatten(1))[:, None]

    net = Net(forward, a=strided(), b=strided(), read=nn.Linear(64, 3), rows=nn.Linear(4 * 8, 3))
    converted = convert(net, torch.rand(2, 4, 32, 32))
    assert converted.b.pooling.fixed_size == (8, 8)


@pytest.mark.parametrize("meets_first", [True, False])
def test_modules_that_meet_are_pinned_alike_wherever_they_meet(meets_first):
    def forward(net, x):
        x = net.a(x)
        y, z = net.b(x), net.c(x)
        if meets_first:
            return net.last(y + z).mean((2, 3)) + net.rows(y.transpose(2, 3)).mean((1, 2))
        rows = net.rows(y.transpose(2, 3)).mean((1, 2))
        return net.last(y + z).mean((2, 3)) + rows

    convs = {name: strided() for name in ("a", "b", "c", "last")}
    net = Net(forward, **convs, rows=nn.Linear(8, 4))
    converted = convert(net, torch.rand(2, 4, 32, 48))
    assert converted.b.pooling is converted.c.pooling
    assert converted.b.pooling.fixed_size == (8, None)


def test_a_module_that_meets_a_layer_of_the_network_with_a_fixed_axis_shares_it():
    def forward(net, x):
        x = net.a(x)
        return net.last(net.own(x) + net.b(x))

    own = DiffStride((2.0, 1.0), fixed_size=(None, 8))
    net = Net(forward, a=strided(), own=own, b=strided(), last=strided())
    x = torch.rand(2, 4, 32, 32)
    converted = convert(net, x)
    assert converted.b.pooling is converted.own
    converted.own.strides.data[0] = 3.0
    assert converted(x).shape == (2, 4, 3, 4)


def test_a_checkpoint_of_a_version_that_pinned_all_axes(tmp_path):
    converted = convert(Reader(), SOUND, order="before")
    expected = converted(SOUND)
    state = converted.state_dict()
    del state["body.2.0.pooling.strides"]
    other = convert(Reader(), SOUND, order="before")
    with pytest.warns(UserWarning, match=r"no body.2.0.pooling.strides.*they stay \(1.0, 1.0\)"):
        other.load_state_dict(state)
    torch.testing.assert_close(other(SOUND), expected)


def test_a_pooling_of_torch_in_the_place_of_a_layer_is_loaded():
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    attach_pooling(conv, nn.AvgPool2d(2), [CropPad(), CropPad()])
    conv.load_state_dict(conv.state_dict())


def test_rows_that_join_the_batch_pass_a_pinned_module():
    """Each column becomes a sample of its own in front of a head of one length."""

    def forward(net, x):
        x = net.a(x)
        rows = net.b(x.permute(0, 3, 1, 2).flatten(0, 1))
        rows = net.read(rows.flatten(1))
        return rows.unflatten(0, (x.shape[0], x.shape[3])).mean(1)

    b = nn.Conv1d(4, 4, 3, stride=2, padding=1)
    net = Net(forward, a=strided(), b=b, read=nn.Linear(4 * 8, 3))
    x = torch.rand(2, 4, 32, 32)
    converted = convert(net, x)
    assert converted.b.pooling.fixed_size == (8,)
    cost = MultiplyAdds(converted, x)
    for seed in range(3):
        move_strides(converted, seed)
        assert converted(x).shape == (2, 3)
        assert cost.value() == counted(converted.eval(), x)


# Axes that keep their samples


def test_kept_axes_follow_the_map_before():
    net = nn.Sequential(DiffStride((2.0, 1.0), upper_limit_stride=(None, 1.0)), nn.Conv2d(3, 3, 1))
    assert net[0].kept_axes == (1,)
    assert not net[0].fixes_size
    assert DiffStride((1.0, 1.0), upper_limit_stride=1.0).fixes_size
    assert DiffStride(cropping=False, straight_through=False).kept_axes == (0, 1)


def test_layers_of_the_network_with_kept_axes_among_shared_strides():
    own = DiffStride((1.0, 1.0), upper_limit_stride=(1.0, None))
    net = nn.Sequential(strided(), own, strided(), nn.AdaptiveAvgPool2d(1))
    converted = convert(net, torch.rand(2, 4, 32, 32), shared_stride=True)
    assert len(stride_layers(converted)) == 3


def test_kept_axes_and_shared_strides_exclude_each_other():
    net = nn.Sequential(strided(), nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1), nn.Linear(16, 3))
    x = torch.rand(2, 4, 32, 32)
    converted = convert(net, x, shared_stride=True, keep_ones=True)
    assert converted[1].pooling.fixed_size == (8, 16)
    with pytest.raises(ValueError, match="shared_stride needs equal strides, but got"):
        convert(net[:2], x, order="before", shared_stride=True, keep_ones=True)


def test_a_kept_axis_may_meet_the_map_that_it_was_made_of():
    """The rows of both maps are means, their columns must agree."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3, stride=(1, 2), padding=1)
            self.rows = nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1)

        def forward(self, x):
            x = self.first(x)
            return self.rows(x).mean(2) + x.mean(2)

    x = torch.rand(1, 1, 32, 32)
    converted = convert(Both(), x, keep_ones=True, order="before")
    assert sorted(converted.conversion.strides) == ["first", "rows"]
    with torch.no_grad():
        converted.first.pooling.strides[1] = 3.0
    assert converted(x).shape == (1, 4, 11)
    assert MultiplyAdds(converted, x).value() == counted(converted.eval(), x)
