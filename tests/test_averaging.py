"""Moving average of weights: its value, and that it is tested, saved and reported."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from tiny_runs import EPOCHS, STEPS_PER_EPOCH, At, read_log, tiny_network, train_tiny

from diffstride import DiffStride, stride_layers
from diffstride.strides import stride_scalars
from diffstride.training.data import load_datasets
from diffstride.training.network_cost import measure_cost

DECAY = 0.95
OPTIONS = {"stride_learning_rate": 1.0, "weight_averaging": DECAY}
STEPS = EPOCHS * STEPS_PER_EPOCH


class Average(pl.Callback):
    """Computes the moving average of a network, with statistics, in plain float64.

    Strides are not averaged.
    """

    def __init__(self):
        self.state = None

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.last = pl_module.network.state_dict()
        new = {name: value.double() for name, value in self.last.items()}
        old = new if self.state is None else self.state
        self.state = {
            name: value if "strides" in name else DECAY * old[name] + (1 - DECAY) * value
            for name, value in new.items()
        }
        self.last = {name: value.clone() for name, value in self.last.items()}


class OnAccelerator(DiffStride):
    """Reads its strides as on an accelerator, when the version of the parameter has changed."""

    def _is_on_cpu(self):
        return False


def network_of(state):
    network = tiny_network(10, 1).eval()
    network.load_state_dict(state)
    return network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    average, workdir = Average(), tmp_path_factory.mktemp("averaged")
    summary = train_tiny(workdir, callbacks=[average], **OPTIONS)
    return workdir, summary, average


def assert_same(summary, expected):
    for key in ("test_accuracy", "multiply_adds_end", "epochs"):
        assert summary[key] == expected[key]
    for name, strides in summary["strides"].items():
        assert strides == pytest.approx(expected["strides"][name], abs=1e-6)


@torch.no_grad()
def test_accuracy_is_that_of_the_average(run):
    network = network_of(run[2].state)
    batches = load_datasets("digits", train_examples=320, test_examples=101).test
    correct = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)
    assert run[1]["test_accuracy"] == pytest.approx(100 * correct / 101, abs=1e-3)


def test_strides_and_cost_are_those_of_the_network(run):
    workdir, summary, average = run
    network = network_of(average.state)
    cost = measure_cost(network_of(average.last), (1, 8, 8)).multiply_adds
    assert summary["multiply_adds_end"] == cost
    row = read_log(workdir)[STEPS]
    assert row["multiply_adds"] == cost
    for name, value in stride_scalars(network).items():
        assert row[name] == pytest.approx(value, abs=1e-5)
    for name, layer in stride_layers(network).items():
        assert summary["strides"][name] == pytest.approx(layer.stride_values(), abs=1e-5)


def test_checkpoints_hold_the_average(run):
    saved = torch.load(run[0] / "checkpoints" / "last.ckpt")["state_dict"]
    for name, value in run[2].state.items():
        if name.endswith("num_batches_tracked"):  # integers that are not used here
            continue
        torch.testing.assert_close(saved[f"network.{name}"].double(), value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [DiffStride, OnAccelerator])
def test_averaging_does_not_change_the_training(run, tmp_path, layer):
    model = partial(
        tiny_network, pooling_cls=partial(layer, edge="stopband", straight_through=False)
    )
    logs = []
    for decay in (None, DECAY):
        workdir = tmp_path / str(decay)
        train_tiny(workdir, **OPTIONS | {"weight_averaging": decay, "model": model})
        logs.append(read_log(workdir))
    for step in range(STEPS_PER_EPOCH, STEPS + 1, STEPS_PER_EPOCH):
        first, second = (log[step]["train_loss"] for log in logs)
        assert first == pytest.approx(second, rel=1e-5)
        assert second == pytest.approx(read_log(run[0])[step]["train_loss"], rel=1e-5)


def test_a_resumed_run_keeps_its_average(run, tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        train_tiny(tmp_path, callbacks=[At(STEPS_PER_EPOCH + 2, interrupt)], **OPTIONS)
    assert_same(train_tiny(tmp_path, **OPTIONS), run[1])


def interrupt(trainer):
    raise RuntimeError("interrupted")


def test_a_run_without_summary_ends_with_the_average(tmp_path):
    expected = train_tiny(tmp_path, **OPTIONS)
    (tmp_path / "summary.json").unlink()
    assert_same(train_tiny(tmp_path, **OPTIONS), expected)


def test_the_average_keeps_the_budget(tmp_path):
    average = Average()
    summary = train_tiny(tmp_path, budget=0.8, callbacks=[average], **OPTIONS)
    for name, layer in stride_layers(network_of(average.state)).items():
        assert summary["strides"][name] == pytest.approx(layer.stride_values(), abs=1e-5)
    assert summary["multiply_adds_end"] <= summary["budget"]
