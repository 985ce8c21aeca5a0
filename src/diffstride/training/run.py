"""Train a network on images and learn its strides: the main job, with or without Gin."""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffstride.callbacks import BudgetCallback, StrideMonitor, StridePhase
from diffstride.resnet import resnet18
from diffstride.strides import parameter_groups
from diffstride.training.checkpoints import CHECKPOINTS
from diffstride.training.classifier import Classifier
from diffstride.training.data import Datasets, load_datasets
from diffstride.training.hardware import choose_precision, keep_freed_memory
from diffstride.training.lightning_compat import is_single_process, print_once, set_main_process
from diffstride.training.network import (
    build_network,
    check_strides,
    count_parameters,
    resolve_budget,
)
from diffstride.training.run_folder import find_checkpoint, find_finished, finish, held, save_config
from diffstride.training.run_settings import as_python, describe_run
from diffstride.training.trainer import build_trainer, check_strategy, fit, without_advice
from diffstride.training.weight_averaging import MovingAverage


def train(
    workdir: str | Path = "runs/train",
    model: Callable[..., nn.Module] = resnet18,
    datasets: Callable[..., Datasets] = load_datasets,
    num_epochs: int = 10,
    optimizer: Callable[..., Optimizer] = torch.optim.SGD,
    schedule: Callable[..., LRScheduler] | None = None,
    stride_learning_rate: float | None = None,
    bias_learning_rate: float | None = None,
    stride_phase: tuple[float, float] = (0.0, 1.0),
    weight_decay: float | None = None,
    label_smoothing: float = 0.0,
    stride_penalty: float = 0.0,
    budget: float | str | None = None,
    weight_averaging: float | None = None,
    precision: str | int = "32-true",
    channels_last: bool = True,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: Any = "auto",
    threads: int | None = None,
    seed: int = 0,
    callbacks: Iterable[Any] = (),
    progress_bar: bool | None = None,
) -> dict[str, Any]:
    """Train a network to tell images apart, and leave all there is to know of it in ``workdir``.

    ``workdir`` gets checkpoints after every epoch (the last two and the best), ``metrics.csv`` and
    ``tensorboard/``, the operative Gin configuration, and in the end ``summary.json``,
    ``strides.png`` and ``windows.png``. Called again with the same arguments it continues after the
    last whole epoch, or returns the summary of a run that is finished. The accuracy reported is
    that of the last epoch: the test images take no part in any choice.

    Arguments:
        workdir: folder of this run, made where missing.
        model: builds the network from ``num_output_classes`` and ``in_channels``; or a network, in
            which the trained weights are afterwards, those of a run finished before too.
        datasets: builds the data sets from ``seed``, as `load_datasets` does.
        num_epochs: passes over the training images, a whole number of at least 1.
        optimizer: builds the optimiser from the groups of `parameter_groups`, each of which has a
            ``weight_decay``: one of the optimiser's own would not count.
        schedule: builds a schedule by step, see `build_schedule`; None keeps the learning rate.
        stride_learning_rate: of the strides, at the peak of the schedule; None for the weights'.
        bias_learning_rate: of biases and of the norms' scales, likewise.
        stride_phase: shares of the steps, from 0 to 1, between which the strides learn.
        weight_decay: factor of the squared norm of the kernels in the loss, as published, at least
            0. The loss gets ``weight_decay * |w|^2``, whose gradient is ``2 * weight_decay * w``:
            the optimiser's groups get twice this number. None for the network's attribute
            ``weight_decay``, or 0 where it has none.
        label_smoothing: share of each target that is given to all classes alike, in [0, 1].
        stride_penalty: ``lambda`` of the paper's regulariser, the weight in the loss of
            `diffstride.stride_penalty`; at least 0.
        budget: multiply-adds that the strides are held to after every step, see
            `diffstride.CostBudget`: up to 100 a fraction of those of the network at the start,
            above that their number for one image; ``"strided"`` for those of the same network with
            strided convolutions (``model`` is called with ``pooling_cls=None``). None for no limit.
        weight_averaging: decay per step, from 0 to below 1, of a moving average of all weights,
            norms' statistics and strides, by which the network is tested and which it ends with;
            None for none. A budget is kept by the strides in training, and by their average about.
        precision: of Lightning's `Trainer`, or ``"auto"`` for what this machine is fast at.
        channels_last: whether maps are kept with their channels innermost in memory.
        accelerator: of the `Trainer`, as are ``devices`` and ``strategy``.
        devices: number of processes, each with a batch of its own, so that an epoch has as many
            times fewer steps.
        strategy: how they work together, for instance ``"ddp"``; not one that forks or spawns
            them, as the summary would be lost with them.
        threads: of the CPU in each process; None for torch's choice. Small maps are fastest on one.
        seed: of the initial weights and the order of the images.
        callbacks: further Lightning callbacks.
        progress_bar: whether to show one; None does so in a terminal.

    Returns:
        What ``summary.json`` holds: ``test_accuracy`` in percent, ``strides`` by layer,
        ``multiply_adds_start`` and ``multiply_adds_end`` per image, ``epochs``, ``seconds``, ….
        The start is that of the training: where there is a budget, the strides keep to it already.

    Raises:
        ValueError: an argument is out of range, or ``workdir`` holds a run with other settings.

    >>> summary = train("runs/first", num_epochs=1)  # doctest: +SKIP
    """
    num_epochs, seed, threads, budget = as_python((num_epochs, seed, threads, budget))
    _check_range("num_epochs", num_epochs, 1, math.inf, Integral)
    _check_range("seed", seed, 0, 2**63 - 1, Integral)
    _check_range("label_smoothing", label_smoothing, 0, 1)
    _check_range("stride_penalty", stride_penalty, 0, math.inf)
    if not isinstance(stride_phase, Sequence) or len(stride_phase) != 2:
        raise ValueError(f"stride_phase must be two shares such as (0, 0.5), got {stride_phase!r}")
    phase = StridePhase(*stride_phase, network="network")
    check_strategy(strategy)
    _check_optimizer(optimizer)
    if weight_averaging is not None:
        _check_averaging(weight_averaging, str(precision))
    keep_freed_memory()
    if is_single_process(devices, strategy):
        set_main_process()
    if threads is not None:
        _check_range("threads", threads, 1, math.inf, Integral)
        torch.set_num_threads(threads)
    workdir = Path(workdir)
    data = datasets(seed=seed)
    network = build_network(model, data, seed)
    check_strides(network, stride_penalty=stride_penalty, budget=budget)
    allowed = None if budget is None else resolve_budget(budget, network, model, data)
    decay = getattr(network, "weight_decay", 0.0) if weight_decay is None else weight_decay
    _check_range("weight_decay", decay, 0, math.inf)

    def build_optimizer() -> Optimizer:
        rates = stride_learning_rate, bias_learning_rate
        built = optimizer(parameter_groups(network, 2 * decay, *rates))
        for group in built.param_groups:  # schedules and checkpoints take their numbers from there
            group.update({name: as_python(value) for name, value in group.items()})
        return built

    settings = describe_run(
        data,
        network,
        build_optimizer,
        schedule,
        num_epochs=num_epochs,
        label_smoothing=label_smoothing,
        seed=seed,
        budget=allowed,
        stride_penalty=stride_penalty,
        weight_averaging=weight_averaging,
        stride_phase=stride_phase,
    )
    given = network if isinstance(model, nn.Module) else None
    finished = find_finished(workdir, settings, given)
    if finished is not None:
        return finished
    precision = choose_precision(precision, accelerator)
    callbacks = [StrideMonitor("network"), *callbacks]
    if allowed is not None:  # before all others, so that they see and log what is used
        example = torch.zeros(1, *data.image_shape)
        callbacks.insert(0, BudgetCallback(example, allowed, "network", log=None))
    if tuple(stride_phase) != (0, 1):
        callbacks.insert(0, phase)
    if weight_averaging is not None:  # after the others, so that it averages what they project
        callbacks.append(MovingAverage(weight_averaging))
    with without_advice(), held(workdir):
        checkpoint, record, step = find_checkpoint(workdir / CHECKPOINTS, network, settings)
        save_config(workdir)
        size = f"{count_parameters(network):,} parameters"
        print_once(f"{data.name}: {size}, precision {precision}, in {workdir}")
        setup = (data.image_shape, label_smoothing, stride_penalty, channels_last, record)
        module = Classifier(network, build_optimizer(), schedule, *setup)
        trainer = build_trainer(
            workdir,
            step,
            callbacks,
            progress_bar,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            precision=precision,
            max_epochs=num_epochs,
            log_every_n_steps=min(50, len(data.train)),
        )
        fit(trainer, module, data, checkpoint)
        facts = {"budget": allowed, "stride_penalty": stride_penalty, "precision": precision}
        return finish(workdir, module, facts)


def _check_range(
    name: str, value: float, lowest: float, highest: float, kind: type[Real] = Real
) -> None:
    if isinstance(value, kind) and lowest <= value <= highest:
        return
    what = "a whole number" if kind is Integral else "a number"
    limits = f"of at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
    raise ValueError(f"{name} must be {what} {limits}, got {value!r}")


def _check_averaging(decay: float, precision: str) -> None:
    if not (isinstance(decay, Real) and 0 <= decay < 1):
        raise ValueError(f"weight_averaging must be at least 0 and below 1, got {decay!r}")
    if precision in ("bf16-true", "16-true", "64-true", "64"):
        other = "32-true" if "64" in precision else precision.replace("true", "mixed")
        raise ValueError(
            f"weight_averaging={decay!r} needs weights in float32, but precision is "
            f"{precision!r}: take {other!r}"
        )


def _check_optimizer(optimizer: Any) -> None:
    if "weight_decay" in getattr(optimizer, "keywords", {}):
        raise ValueError(
            "the optimizer has a weight_decay of its own, which would not count, since every group "
            "of parameters has one: give the training its weight_decay instead"
        )
