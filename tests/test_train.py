"""Training with `diffstride.training.run`, without Gin."""

import copy
import json
import logging
import re
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.connectors import accelerator_connector
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tiny_runs import (
    EPOCHS,
    POOLING,
    STEPS_PER_EPOCH,
    At,
    read_log,
    tiny_datasets,
    tiny_network,
    train_tiny,
)
from torch import nn

from diffstride import DiffStride, reference, stride_layers
from diffstride._stride_text import strides_text
from diffstride.convnet import ConvNet, whiten_
from diffstride.strides import stride_scalars
from diffstride.training import board as board_module
from diffstride.training import hardware
from diffstride.training.classifier import _hits
from diffstride.training.data import load_datasets
from diffstride.training.hardware import choose_precision
from diffstride.training.lightning_compat import SLURMEnvironment, rank_zero_only
from diffstride.training.network_cost import measure_cost
from diffstride.training.schedules import build_schedule, multi_step
from diffstride.training.trainer import build_trainer, quiet_lightning

STEPS = EPOCHS * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train_tiny(workdir, stride_learning_rate=0.02)


@pytest.fixture(scope="module")
def log(run):
    return read_log(run[0])


@pytest.fixture(scope="module")
def trained(run):
    checkpoint = torch.load(run[0] / "checkpoints" / "last.ckpt")
    network = tiny_network(10, 1)
    states = {name.removeprefix("network."): v for name, v in checkpoint["state_dict"].items()}
    network.load_state_dict(states)
    return network.eval()


@pytest.fixture(scope="module")
def test_batches():
    return list(load_datasets("digits", train_examples=320, test_examples=101).test)


def small_network_of(num_output_classes, in_channels):
    return small_network(num_output_classes, in_channels)


# What is reported


@torch.no_grad()
def test_accuracy_is_that_of_the_last_network_on_all_test_images(run, trained, test_batches):
    correct = sum(
        int((trained(images).argmax(1) == labels).sum()) for images, labels in test_batches
    )
    assert sum(len(labels) for _, labels in test_batches) == 101
    assert run[1]["test_accuracy"] == pytest.approx(100 * correct / 101, abs=1e-3)


@torch.no_grad()
def test_test_loss_in_the_log_is_the_mean_over_all_test_images(log, trained, test_batches):
    total = sum(F.cross_entropy(trained(x), y, reduction="sum").item() for x, y in test_batches)
    assert log[STEPS]["test_loss"] == pytest.approx(total / 101, rel=1e-4)


def test_strides_are_those_of_the_last_network_and_all_have_moved(run, trained):
    layers = stride_layers(trained)
    assert run[1]["strides"] == {name: list(each.stride_values()) for name, each in layers.items()}
    for name, strides in run[1]["strides"].items():
        assert run[1]["strides_start"][name] == [2.0, 2.0]
        assert all(abs(stride - 2.0) > 1e-4 for stride in strides)


def test_input_sizes_are_those_of_the_maps_that_are_pooled(run, trained):
    sizes, network = {}, copy.deepcopy(trained)
    for name, layer in stride_layers(network).items():
        layer.register_forward_pre_hook(
            lambda layer, inputs, name=name: sizes.update({name: [*inputs[0].shape[2:]]})
        )
    network(torch.zeros(1, 1, 8, 8))
    assert run[1]["input_sizes"] == sizes


def test_multiply_adds_are_those_of_the_first_and_the_last_network(run, trained):
    assert run[1]["multiply_adds_end"] == measure_cost(trained, (1, 8, 8)).multiply_adds
    assert (
        run[1]["multiply_adds_start"] == measure_cost(tiny_network(10, 1), (1, 8, 8)).multiply_adds
    )


def test_summary_is_saved_with_the_facts_of_the_run(run):
    workdir, summary = run
    assert json.loads((workdir / "summary.json").read_text()) == summary
    facts = {"dataset": "digits", "seed": 0, "epochs": 3, "precision": "32-true"}
    assert facts.items() <= summary.items()
    assert summary["parameters"] == sum(p.numel() for p in tiny_network(10, 1).parameters())
    assert summary["threads"] == torch.get_num_threads()
    assert summary["torch"] == torch.__version__
    assert 0 < summary["seconds"] < 60


def test_summary_is_printed(tmp_path, capsys):
    summary = train_tiny(tmp_path, num_epochs=1)
    printed = capsys.readouterr().out
    height, width = summary["strides"]["stem.pooling"]
    for words in (
        f"epoch   1/1  loss {read_log(tmp_path)[5]['train_loss']:.4f}",
        f"{summary['test_accuracy']:.2f} % after 1 epoch",
        f"stride stem.pooling        {strides_text((height, width), (8, 8), form='.3f')}",
        f"{summary['multiply_adds_start'] / 1e6:.2f} M at the start",
        f"{summary['multiply_adds_end'] / 1e6:.2f} M at the end",
        "time ",
    ):
        assert words in printed


def test_progress_bar_shows_accuracy_below_the_lines_of_the_epochs(tmp_path, capsys):
    train_tiny(tmp_path, num_epochs=2, progress_bar=True)
    printed = re.split("[\r\n]+", capsys.readouterr().out)
    bars = [line for line in printed if "/5 [" in line]
    assert re.search(r"loss=\d.*, accuracy=[01]\.\d{3}, test_loss=.*, test_accuracy=", bars[-1])
    assert {line.partition(":")[0] for line in bars} >= {"Epoch 1/2", "Epoch 2/2"}
    assert [line[:11] for line in printed if line.startswith("epoch")] == [
        "epoch   1/2",
        "epoch   2/2",
    ]


# The logs


def test_log_has_a_row_for_the_start_and_each_epoch(log, run):
    assert list(log) == [0, 5, 10, 15]
    assert [row.get("epoch") for row in log.values()] == [None, 1, 2, 3]
    assert log[0]["multiply_adds"] == run[1]["multiply_adds_start"]
    assert log[STEPS]["multiply_adds"] == run[1]["multiply_adds_end"]
    assert log[STEPS]["stride/stem.pooling/width"] == run[1]["strides"]["stem.pooling"][1]
    assert 100 * log[STEPS]["test_accuracy"] == pytest.approx(run[1]["test_accuracy"], abs=1e-3)


def test_map_sizes_in_the_log_are_those_of_the_layers(log, trained):
    sizes = trained.stem.pooling.output_size((8, 8))
    assert (log[STEPS]["map/stem.pooling/height"], log[STEPS]["map/stem.pooling/width"]) == sizes
    inner = trained.blocks[0][0].pooling.output_size(sizes)
    names = [f"map/blocks.0.0.pooling/{axis}" for axis in ("height", "width")]
    assert tuple(log[STEPS][name] for name in names) == inner


def test_tensorboard_has_the_rows_of_the_csv(run, log):
    board = EventAccumulator(str(run[0] / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {name for row in log.values() for name in row} - {"step"}
    for tag in board.Tags()["scalars"]:
        points = {event.step: event.value for event in board.Scalars(tag)}
        assert points == pytest.approx({k: row[tag] for k, row in log.items() if tag in row})


def test_tensorboard_shows_strides_and_windows(run):
    board = EventAccumulator(str(run[0] / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert set(board.Tags()["images"]) == {"windows", "strides"}
    for name in ("windows", "strides"):
        events = board.Images(name)
        assert [each.step for each in events] == [STEPS_PER_EPOCH * (i + 1) for i in range(EPOCHS)]
        first, last = (imread(BytesIO(each.encoded_image_string)) for each in events[:: EPOCHS - 1])
        assert last.shape[1] == 360
        assert 0.01 < (last < 0.9).any(-1).mean() < 0.5
        assert first.shape != last.shape or (first != last).any()


def test_tensorboard_compares_runs_by_settings_accuracy_and_cost(run):
    board = EventAccumulator(str(run[0] / "tensorboard")).Reload()
    parts = board.summary_metadata
    content = {
        name: plugin_data_pb2.HParamsPluginData.FromString(each.plugin_data.content)
        for name, each in parts.items()
        if each.plugin_data.plugin_name == "hparams"
    }
    started = content["_hparams_/session_start_info"].session_start_info.hparams
    assert started["batch_size"].number_value == 64
    assert started["num_epochs"].number_value == EPOCHS
    assert started["dataset"].string_value == "digits"
    infos = content["_hparams_/experiment"].experiment.metric_infos
    names = [info.name.tag for info in infos]
    assert sorted(names) == ["multiply_adds", "test_accuracy"]
    last = {name: board.Scalars(name)[-1].value for name in names}
    assert last["multiply_adds"] == run[1]["multiply_adds_end"]
    assert 100 * last["test_accuracy"] == pytest.approx(run[1]["test_accuracy"], abs=1e-3)


def test_pictures_of_tensorboard_come_every_few_epochs_and_at_the_end(monkeypatch):
    drawn = []
    board = SimpleNamespace(add_image=lambda name, image, step, **_: drawn.append((name, step)))
    monkeypatch.setattr(board_module, "writers", lambda trainer: [board])
    monkeypatch.setattr(board_module, "draw", lambda *_: {"windows": Figure()})
    module = SimpleNamespace(network=nn.Identity(), image_shape=(1, 8, 8))
    for epoch in range(7):
        progress = {"current_epoch": epoch, "max_epochs": 7, "global_step": 10 * epoch}
        trainer: Any = SimpleNamespace(loggers=[], **progress)
        board_module.BoardPictures(every=3).on_train_epoch_end(trainer, module)
    assert drawn == [("windows", 20), ("windows", 50), ("windows", 60)]


def test_strides_follow_the_schedule_at_their_own_rate(log):
    rates = [row["learning_rate"] for row in log.values()]
    assert max(rates) > 0.09 > 0.004 > rates[-1]
    for row in log.values():
        assert row["stride_learning_rate"] == pytest.approx(row["learning_rate"] / 5)


@pytest.mark.parametrize("picture", ["strides.png", "windows.png"])
def test_pictures_are_drawn(run, picture):
    width, height = imread(run[0] / picture).shape[1::-1]
    assert width > 500
    assert height > 200


# The training itself


@pytest.mark.parametrize(
    ("label_smoothing", "mixup_alpha", "penalty"),
    [(0.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.0, 0.5, 0.0), (0.3, 0.5, 0.0), (0.0, 0.0, 2.0)],
)
def test_first_steps_equal_those_of_a_plain_loop(tmp_path, label_smoothing, mixup_alpha, penalty):
    datasets = partial(load_datasets, batch_size=32, train_examples=64, mixup_alpha=mixup_alpha)
    options = {"lr": 0.1, "momentum": 0.9}
    train_tiny(
        tmp_path,
        datasets=datasets,
        num_epochs=1,
        schedule=None,
        label_smoothing=label_smoothing,
        stride_penalty=penalty,
        optimizer=partial(torch.optim.SGD, **options),
        stride_learning_rate=0.5,
        weight_decay=0.01,
        model=small_network,
    )
    trained = torch.load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]

    torch.manual_seed(0)
    network = small_network(10, 1)
    data = datasets(seed=0)
    data.train.sampler.set_epoch(0)
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for n, p in network.named_parameters() if p.ndim == 1 and "strides" not in n]
    groups = [
        {"params": kernels, "weight_decay": 0.02},
        {"params": others},
        {"params": [network[1].strides], "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, **options)
    for images, targets in data.train:
        optimizer.zero_grad()
        logits = network(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        height, width = network[1].strides
        (loss + penalty / (height * width)).backward()
        optimizer.step()
        network[1].project_()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trained[f"network.{name}"], value, rtol=1e-4, atol=1e-6)


def test_a_single_process_is_the_main_one_whatever_its_slurm_rank(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as read from the rank of the task
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "1" if name != "NODEID" else "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "grid")
    train_tiny(tmp_path, num_epochs=1)
    assert "epoch   1/1" in capsys.readouterr().out
    assert {"summary.json", "metrics.csv", "checkpoints"} <= {f.name for f in tmp_path.iterdir()}
    assert read_log(tmp_path)


def test_test_loss_ignores_label_smoothing(tmp_path):
    # So that test losses of runs with and without label smoothing are comparable.
    datasets = partial(load_datasets, batch_size=32, train_examples=64, test_examples=101)
    train_tiny(tmp_path, datasets=datasets, num_epochs=1, label_smoothing=0.3, model=small_network)
    network = small_network(10, 1).eval()
    trained = torch.load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    network.load_state_dict({k.removeprefix("network."): v for k, v in trained.items()})
    with torch.no_grad():
        losses = [F.cross_entropy(network(x), y, reduction="none") for x, y in datasets().test]
    (row,) = [row for row in read_log(tmp_path).values() if "test_loss" in row]
    assert row["test_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": partial(tiny_network, pooling_cls=None)}, "training loss is nan after 1 step"),
        ({}, "training loss is nan after 1 step"),  # the weights have diverged, not the strides
        (
            {"datasets": tiny_datasets(train_examples=64, batch_size=64)},
            "test loss is nan after 1 step",
        ),
    ],
    ids=["fixed strides", "learned strides", "test loss"],
)
def test_a_training_that_has_diverged_is_stopped(tmp_path, options, message):
    options = {"optimizer": partial(torch.optim.SGD, lr=1e30), "schedule": None} | options
    with pytest.raises(ValueError, match=rf"{message}: training has diverged; choose lower learn"):
        train_tiny(tmp_path, stride_learning_rate=0.0, **options)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "summary.json").exists()


def small_network(num_output_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1),
        DiffStride((2.0, 1.5), edge="stopband"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_output_classes),
    )


def test_stride_penalty_pushes_strides_up(tmp_path):
    plain, pushed = (
        train_tiny(tmp_path / str(penalty), num_epochs=1, stride_penalty=penalty)
        for penalty in (0.0, 3.0)
    )
    assert (plain["stride_penalty"], pushed["stride_penalty"]) == (0.0, 3.0)
    for name, strides in plain["strides"].items():
        assert pushed["strides"][name][0] > strides[0] + 0.01
        assert pushed["strides"][name][1] > strides[1] + 0.01


class WatchCost(pl.Callback):
    """Records the multiply-adds after every step."""

    def __init__(self):
        self.costs = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.costs.append(measure_cost(pl_module.network, SHAPE).multiply_adds)


SHAPE = (1, 64, 64)


def budget_run(workdir, budget, *callbacks, **options):
    """A run on 64 x 64 pixels, where one row is a small part of the cost."""
    rule = {"stride_rule": "gradient", "stride_learning_rate": 0.1}
    options |= {**rule, "callbacks": callbacks, "budget": budget}
    data = partial(
        load_datasets, batch_size=64, train_examples=320, test_examples=20, image_size=64
    )
    return train_tiny(workdir, datasets=data, num_epochs=2, **options)


def cost_of(pooling_cls):
    return measure_cost(tiny_network(10, 1, pooling_cls=pooling_cls), SHAPE).multiply_adds


@pytest.mark.parametrize(
    "budget", [pytest.param(1.0, marks=pytest.mark.slow), 0.8, "strided", 500_000]
)
def test_budget_holds_after_every_step(tmp_path, budget):
    watch = WatchCost()
    summary = budget_run(tmp_path, budget, watch)
    fraction = budget if isinstance(budget, float) else 0.0
    known = {"strided": cost_of(None), 500_000: 500_000}
    allowed = known.get(budget, fraction * cost_of(POOLING))
    assert summary["budget"] == allowed
    assert len(watch.costs) == 10
    costs = [*watch.costs, summary["multiply_adds_start"], summary["multiply_adds_end"]]
    assert all(0.99 * allowed <= cost <= allowed for cost in costs)
    assert summary["strides"] != summary["strides_start"]
    log = read_log(tmp_path)
    assert [row.get("epoch") for row in log.values()] == [None, 1, 2]
    assert log[10]["multiply_adds"] == summary["multiply_adds_end"]


def test_a_resumed_run_keeps_its_budget(tmp_path):
    def stop(trainer):
        raise KeyError("stop")

    whole = budget_run(tmp_path / "whole", 0.8)
    with pytest.raises(KeyError, match="stop"):
        budget_run(tmp_path / "interrupted", 0.8, At(7, stop))
    resumed = budget_run(tmp_path / "interrupted", 0.8)
    for name in ("strides", "multiply_adds_end", "test_accuracy"):
        assert resumed[name] == whole[name]


@pytest.mark.parametrize(
    "phase", [pytest.param((0.4, 1.0), marks=pytest.mark.slow), (0.2, 0.6), (0.0, 0.8)]
)
def test_strides_learn_in_their_phase_only(tmp_path, phase):
    note = History()
    options = {"stride_learning_rate": 0.05, "schedule": None, "callbacks": [note]}
    summary = train_tiny(tmp_path, stride_phase=phase, **options)
    first = {
        f"stride/{layer}/{axis}": value
        for layer, values in summary["strides_start"].items()
        for axis, value in zip(("height", "width"), values, strict=True)
    }
    moved = [new != old for old, new in pairwise([first, *note.strides])]
    start, stop = (round(share * STEPS) for share in phase)
    assert moved == [start <= step < stop for step in range(STEPS)]


def test_a_budget_moves_strides_once_if_they_do_not_learn(tmp_path):
    options = {"stride_learning_rate": 0.05, "stride_phase": (1.0, 1.0)}
    summary = train_tiny(tmp_path, budget=0.8, **options)
    for name, strides in summary["strides"].items():
        assert strides == pytest.approx(summary["strides_start"][name], abs=1e-6)
    assert max(max(strides) for strides in summary["strides"].values()) > 2.0


class History(pl.Callback):
    """Records the strides after every step."""

    def __init__(self):
        self.strides = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.strides.append(stride_scalars(pl_module.network))


def test_biases_have_their_own_learning_rate(tmp_path):
    seen = []
    note = At(1, lambda trainer: seen.extend(trainer.optimizers[0].param_groups))
    train_tiny(tmp_path, num_epochs=1, schedule=None, bias_learning_rate=0.7, callbacks=[note])
    assert {group["name"]: group["lr"] for group in seen} == {
        "kernels": 0.1,
        "others": 0.7,
        "strides": 0.1,
    }


def test_whitening_of_a_convnet_is_computed_from_training_images(tmp_path):
    network = []
    note = At(1, lambda trainer: network.append(trainer.lightning_module.network))
    model = partial(ConvNet, [8], [2], pooling_cls=POOLING)
    train_tiny(tmp_path, num_epochs=1, model=model, callbacks=[note])
    images = load_datasets("digits", train_examples=320).sample(1000)
    assert len(images) == 320
    expected = torch.empty(8, 1, 2, 2)
    whiten_(expected, images)
    torch.testing.assert_close(network[0].whitening.weight.detach(), expected)


def test_a_network_in_place_of_a_builder_is_trained(tmp_path):
    network = tiny_network(10, 1)
    before = network.dense.weight.clone()
    summary = train_tiny(tmp_path, model=network, num_epochs=1)
    assert summary["strides"]["stem.pooling"] == list(network.stem.pooling.stride_values())
    assert not torch.equal(network.dense.weight, before)


def test_a_network_gets_the_weights_of_a_finished_run(tmp_path):
    first, second = tiny_network(10, 1), tiny_network(10, 1)
    summary = train_tiny(tmp_path, model=first, num_epochs=1)
    assert train_tiny(tmp_path, model=second, num_epochs=1) == summary
    trained = first.state_dict()
    for name, value in second.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=0)
    assert summary["strides"]["stem.pooling"] == list(second.stem.pooling.stride_values())
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ValueError, match=r"has no checkpoint with the weights of the network"):
        train_tiny(tmp_path, model=tiny_network(10, 1), num_epochs=1)


def test_same_seed_same_run_other_seed_another(tmp_path):
    one, same, other = (
        train_tiny(tmp_path / str(i), num_epochs=1, seed=seed)["strides"]
        for i, seed in enumerate((0, 0, 1))
    )
    assert one == same
    assert one != other


@pytest.mark.slow
def test_memory_format_does_not_change_the_strides(tmp_path):
    runs = [
        train_tiny(tmp_path / str(flag), num_epochs=1, channels_last=flag)["strides"]
        for flag in (False, True)
    ]
    for name, strides in runs[0].items():
        assert strides == pytest.approx(runs[1][name], abs=1e-5)


@pytest.mark.slow
def test_bfloat16_learns_nearly_the_same_strides(tmp_path):
    exact, mixed = (
        train_tiny(tmp_path / precision, num_epochs=1, precision=precision)
        for precision in ("32-true", "bf16-mixed")
    )
    assert mixed["precision"] == "bf16-mixed"
    # Rounding to 8 bits makes the trainings drift apart: on a CPU with bf16 instructions by about
    # 0.005 of the 0.02 that strides move here. The direction stays the same.
    moves = [
        torch.tensor([*run["strides"].values()]) - torch.tensor([*run["strides_start"].values()])
        for run in (exact, mixed)
    ]
    torch.testing.assert_close(moves[1], moves[0], atol=1e-2, rtol=0)
    assert torch.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0) > 0.9
    assert not torch.equal(*moves)


with_fixed_strides = partial(tiny_network, pooling_cls=partial(DiffStride, trainable=False))
as_published = partial(tiny_network, pooling_cls=reference.DiffStride)


@pytest.mark.slow
def test_number_of_threads_is_set(tmp_path):
    before = torch.get_num_threads()
    try:
        assert train_tiny(tmp_path, num_epochs=1, threads=2)["threads"] == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, "num_epochs must be a whole number of at least 1, but got 0"),
        ({"num_epochs": 1.0}, "num_epochs must be a whole number, but got 1.0"),
        ({"seed": 10**20}, "seed must be a whole number from 0 to 9223372036854775807, but got 10"),
        ({"seed": 0.5}, "seed must be a whole number, but got 0.5"),
        ({"threads": 1.5}, "threads must be a whole number or None, but got 1.5"),
        ({"stride_phase": 0.5}, r"stride_phase must be 2 values .* got 0.5"),
        (
            {"stride_phase": ("a", 1)},
            r"stride_phase must be 2 values .* got \('a', 1\)",
        ),
        ({"stride_learning_rate": "0.1"}, "stride_learning_rate must be a number .* got '0.1'"),
        ({"weight_averaging": "a"}, "weight_averaging must be a number or None, but got 'a'"),
        ({"stride_phase": (0.1, 0.2, 0.3)}, r"stride_phase must be 2 values .* got \(0.1, 0.2, 0"),
        ({"strategy": "ddp_spawn", "devices": 2}, "'ddp_spawn' trains in forked .*use 'ddp'"),
        (
            {"optimizer": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3)},
            "weight_decay of the optimizer would have no effect.*weight_decay of the training",
        ),
        ({"label_smoothing": 1.5}, "label_smoothing must be a number from 0 to 1, but got 1.5"),
        ({"stride_phase": (0.5, 0.2)}, "start <= stop <= 1, but got 0.5 and 0.2"),
        (
            {"weight_averaging": 0.9, "precision": "bf16-true"},
            "weight_averaging=0.9 needs weights in float32.*'bf16-true': use 'bf16-mixed'",
        ),
        (
            {"weight_averaging": 0.9, "precision": "64-true"},
            "weight_averaging=0.9 needs weights in float32.*'64-true': use '32-true'",
        ),
        ({"bias_learning_rate": -1.0}, "bias_learning_rate must be a number .*got -1.0"),
        ({"weight_averaging": 1.0}, "weight_averaging must be at least 0 and below 1, but got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be a number of at least 0, but got -1.0"),
        ({"stride_penalty": -1.0}, "stride_penalty must be a number of at least 0, but got -1.0"),
        ({"budget": 0}, "budget must be a number above 0, or 'strided'.*got 0"),
        ({"budget": "all"}, "budget must be a number above 0, or 'strided'.*got 'all'"),
        ({"budget": "before"}, "budget must be a number above 0, .*is a word of CostBudget"),
        ({"budget": "strided", "model": tiny_network(10, 1)}, "a model that takes pooling_cls"),
        ({"budget": "strided", "model": small_network_of}, "needs a model that takes pooling_cls"),
        (
            {"budget": "strided", "model": partial(tiny_network, strides=(1.5, 2))},
            r"strided convolutions, which cannot be built \(.*\): start from whole strides, or",
        ),
        ({"budget": 0.5, "model": partial(tiny_network, pooling_cls=None)}, "budget=0.5 needs"),
        ({"stride_penalty": 1.0, "model": partial(tiny_network, pooling_cls=None)}, "=1.0 needs"),
        ({"stride_penalty": 1.0, "model": with_fixed_strides}, "=1.0 needs learnable strides"),
        ({"budget": "strided", "model": as_published}, "'strided' needs .* reference.DiffStride"),
    ],
)
def test_values_out_of_range_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_tiny(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_training_that_cannot_start_leaves_only_what_was_there(tmp_path):
    workdir = tmp_path / "runs" / "first"

    def fail_to_start():
        with pytest.raises(ValueError, match="abacus"):
            train_tiny(workdir, accelerator="abacus")
        return sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*"))

    assert fail_to_start() == []
    workdir.mkdir(parents=True)
    (workdir / "notes.txt").write_text("mine")
    kept = ["runs", "runs/first", "runs/first/notes.txt"]
    assert fail_to_start() == kept
    with pytest.raises(KeyError, match="after an epoch"):
        train_tiny(workdir, callbacks=[FailsInTheSecondEpoch()])
    begun = sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*"))
    assert {*kept, "runs/first/checkpoints/last.ckpt", "runs/first/metrics.csv"} < set(begun)
    assert fail_to_start() == begun
    assert train_tiny(workdir)["epochs"] == EPOCHS


class FailsInTheSecondEpoch(pl.Callback):
    def on_train_epoch_start(self, trainer, *args):
        if trainer.current_epoch == 1:
            raise KeyError("after an epoch")


def test_several_devices_in_a_notebook_are_refused_before_they_train(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator_connector, "_IS_INTERACTIVE", True)
    with pytest.raises(
        ValueError, match=r"'auto' trains in forked or spawned processes.* or one device"
    ):
        train_tiny(tmp_path, devices=2)
    assert not (tmp_path / "metrics.csv").exists()


def test_slurm_requeueing_does_not_save_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    task = dict.fromkeys(("PROCID", "LOCALID", "NODEID"), "0")
    task |= {"NTASKS": "2", "NTASKS_PER_NODE": "2", "JOB_NAME": "train"}
    for name, value in task.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    trainer = build_trainer(tmp_path, 0, [], False, **options)
    assert isinstance(trainer.strategy.cluster_environment, SLURMEnvironment)
    assert not trainer.strategy.cluster_environment.auto_requeue


# Its parts


def optimizer_of(*rates):
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates], lr=1.0)


def rates_of(schedule, steps):
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return rates


def test_log_levels_of_lightning_are_restored():
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning")]
    before = [logger.level for logger in loggers]
    with quiet_lightning():
        assert {logger.level for logger in loggers} == {logging.WARNING}
    assert [logger.level for logger in loggers] == before


def test_multi_step_is_the_published_schedule():
    schedule = multi_step(optimizer_of(0.1, 0.02))
    factor = schedule.lr_lambdas[0]
    # A boundary is the last step of its factor, as in Keras.
    expected = {0: 0.1, 400: 0.1, 401: 1.0, 18_000: 1.0, 18_001: 0.1, 32_000: 0.1, 32_001: 0.01}
    assert {step: factor(step) for step in expected} == expected
    assert rates_of(schedule, 402)[400:] == [pytest.approx([0.01, 0.002]), [0.1, 0.02]]


@pytest.mark.parametrize(
    ("boundaries", "factors"), [([1], [1.0]), ([2, 1], [1.0, 1.0, 1.0]), ([1, 1], [1.0, 1.0, 1.0])]
)
def test_multi_step_refuses_wrong_boundaries_and_factors(boundaries, factors):
    with pytest.raises(ValueError, match="increasing boundaries and one factor more"):
        multi_step(optimizer_of(0.1), boundaries, factors)


def test_polynomial_decay_ends_with_the_training():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.2}])
    schedule = build_schedule(torch.optim.lr_scheduler.PolynomialLR, optimizer, total_steps=8)
    rates = rates_of(schedule, 8)
    assert rates[4] == pytest.approx([0.1])
    assert min(rates[:8]) > [0.0]
    squared = partial(torch.optim.lr_scheduler.PolynomialLR, power=2.0)
    rates = rates_of(build_schedule(squared, optimizer_of(0.2, 0.2), total_steps=8), 8)
    assert rates[4] == pytest.approx([0.05, 0.05])


def test_what_a_partial_of_a_schedule_sets_stays():
    torch_schedules = torch.optim.lr_scheduler
    peak = partial(torch_schedules.OneCycleLR, max_lr=0.5)
    rates = rates_of(build_schedule(peak, optimizer_of(0.1, 0.1), total_steps=10), 10)
    assert max(rates)[0] == pytest.approx(0.5)
    slow = partial(torch_schedules.CosineAnnealingLR, T_max=20)
    rates = rates_of(build_schedule(slow, optimizer_of(0.1, 0.1), total_steps=10), 10)
    assert rates[5][0] == pytest.approx(0.05 * (1 + 0.5**0.5))


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR", "MultiStepLR"])
def test_schedules_of_torch_get_the_length_and_the_rates_of_the_run(name):
    build = getattr(torch.optim.lr_scheduler, name)
    if name == "MultiStepLR":
        build = partial(build, milestones=[4])
    schedule = build_schedule(build, optimizer_of(0.1, 0.02), total_steps=10)
    first, second = zip(*rates_of(schedule, 10), strict=True)
    assert max(first) == pytest.approx(0.1)
    assert first[-1] < 0.011
    assert [5 * rate for rate in second] == pytest.approx(first)


def test_cost_is_that_of_the_layers_and_leaves_the_network_as_it_was():
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), DiffStride(2.0, edge="stopband"), nn.BatchNorm2d(5)
    )
    network[2].eval()
    for _ in range(2):  # cached matrices must not change the cost
        cost = measure_cost(network, (3, 8, 12))
        convolution = 5 * 3 * 9 * 8 * 12
        pooling = 5 * min(4 * 8 * 12 + 6 * 12 * 4, 6 * 12 * 8 + 4 * 8 * 6)
        assert cost.multiply_adds == convolution + pooling
        assert cost.map_sizes == {"1": (4, 6)}
    assert [each.training for each in network] == [True, True, False]
    assert int(network[2].num_batches_tracked) == 0


def test_a_network_that_refuses_its_input_keeps_no_hooks():
    network = nn.Sequential(DiffStride(2.0), nn.Flatten(), nn.Linear(3 * 64, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure_cost(network, (3, 32, 32))
    assert not any(each._forward_hooks for each in network.modules())


@pytest.mark.parametrize(
    ("cuda", "cpu", "accelerator", "expected"),
    [
        (True, False, "auto", "bf16-mixed"),
        (True, False, "cpu", "32-true"),
        (False, True, "auto", "bf16-mixed"),
        (False, True, "cpu", "bf16-mixed"),
        (False, True, "mps", "32-true"),
        (False, False, "auto", "32-true"),
    ],
)
def test_auto_precision_is_that_of_the_machine(monkeypatch, cuda, cpu, accelerator, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda)
    monkeypatch.setattr(hardware, "_cpu_has_bfloat16", lambda: cpu)
    assert choose_precision("auto", accelerator) == expected
    assert choose_precision("16-mixed", accelerator) == "16-mixed"


def test_cpu_has_bfloat16_only_with_the_instructions():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("needs /proc/cpuinfo, which only Linux has")
    flags = cpuinfo.read_text().split()
    assert hardware._cpu_has_bfloat16() == ("avx512_bf16" in flags or "amx_tile" in flags)


class Watch(pl.Callback):
    """Records accuracy and loss of each batch before its step."""

    def __init__(self):
        self.right, self.losses = [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        images, labels = batch
        state = {name: value.clone() for name, value in module.network.state_dict().items()}
        with torch.no_grad():
            logits = module.network(images)
        module.network.load_state_dict(state)  # restore the statistics of the norms
        self.right.append((logits.argmax(1) == labels).float().mean().item())
        self.losses.append(F.cross_entropy(logits, labels).item())


def test_logged_training_accuracy_and_loss_are_means_over_batches(tmp_path):
    watch = Watch()
    train_tiny(tmp_path, num_epochs=1, callbacks=[watch])
    row = read_log(tmp_path)[STEPS_PER_EPOCH]
    assert row["train_accuracy"] == pytest.approx(sum(watch.right) / STEPS_PER_EPOCH, abs=1e-6)
    assert row["train_loss"] == pytest.approx(sum(watch.losses) / STEPS_PER_EPOCH, rel=1e-4)


def test_hits_compare_with_labels_and_with_probabilities():
    logits = torch.tensor([[0.1, 0.9, 0.0], [0.9, 0.0, 0.1]])
    assert _hits(logits, torch.tensor([1, 2])).tolist() == [1.0, 0.0]
    targets = torch.tensor([[0.3, 0.7, 0.0], [0.2, 0.8, 0.0]])
    assert _hits(logits, targets).tolist() == [1.0, 0.0]
