"""`train`: trains a network and its strides on images or sounds, with or without Gin."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffstride._files import name_errors
from diffstride.callbacks import BudgetCallback, StrideMonitor, StridePhase
from diffstride.resnet import resnet18
from diffstride.strides import parameter_groups
from diffstride.training.argument_types import check_arguments
from diffstride.training.board import BoardPictures
from diffstride.training.checkpoints import CHECKPOINTS
from diffstride.training.classifier import Classifier
from diffstride.training.data import Datasets, load_datasets
from diffstride.training.files import expand_home
from diffstride.training.gin_compat import refuse_overruled_bindings
from diffstride.training.hardware import choose_precision, keep_freed_memory
from diffstride.training.lightning_compat import is_single_process, print_once, set_main_process
from diffstride.training.network import (
    build_network,
    check_strides,
    count_parameters,
    count_strides,
    resolve_budget,
)
from diffstride.training.options import StrideRule, check_options, check_range, choose_rule
from diffstride.training.run_folder import (
    find_checkpoint,
    find_finished,
    finish,
    hold_folder,
    save_config,
)
from diffstride.training.run_settings import as_python, describe_examples, describe_run
from diffstride.training.time_estimate import TimeEstimate
from diffstride.training.trainer import (
    build_trainer,
    check_callbacks,
    fit,
    quiet_lightning,
)
from diffstride.training.weight_averaging import MovingAverage

BOARD_PICTURES = 5
"""Pictures of a run on TensorBoard; each takes about a second."""


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
    stride_rule: StrideRule | None = None,
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
    """Train a classifier with learnable strides, and save the run in ``workdir``.

    ``workdir`` gets checkpoints after every epoch (the last two and the best), ``metrics.csv``,
    ``tensorboard/`` and the operative Gin configuration, and at the end ``summary.json``,
    ``strides.png`` and ``windows.png``. The same call resumes a run after its last whole epoch, or
    returns the summary of a finished run. The reported accuracy is that of the last epoch: nothing
    is chosen by test accuracy.

    Args:
        workdir: run folder, created if missing.
        model: builds the network from ``num_output_classes`` and ``in_channels``, for waveforms
            also from ``num_axes``; or a network. A network has the trained weights afterwards, also
            if the run was finished before.
        datasets: builds the data sets from ``seed``, as `load_datasets` does.
        num_epochs: passes over the training images, a whole number of at least 1.
        optimizer: builds the optimiser from the groups of `parameter_groups`. Each group has a
            ``weight_decay``, so one given to the optimiser would have no effect.
        schedule: builds a schedule per step, see `build_schedule`; None for a constant rate.
        stride_learning_rate: peak learning rate of the strides; None for that of the weights.
        bias_learning_rate: peak learning rate of biases and scales; None for that of the weights.
        stride_phase: first and last share of the steps in which strides learn, from 0 to 1.
        weight_decay: factor of the squared norm of the kernels in the loss, as published, at least
            0. The loss gets ``weight_decay * |w|^2``, whose gradient is ``2 * weight_decay * w``:
            the optimiser's groups get twice this number. None for the network's attribute
            ``weight_decay``, or 0 where it has none.
        label_smoothing: share of each target spread evenly over all classes, in [0, 1].
        stride_penalty: weight ``lambda`` of the paper's regulariser in the loss, at least 0; see
            `diffstride.stride_penalty`.
        budget: multiply-adds per image that the strides keep after every step, see
            `diffstride.CostBudget`. Up to 100 it is a fraction of the network's multiply-adds at
            the start, above 100 their number. ``"strided"`` stands for those of the same network
            with strided convolutions: ``model`` is called with ``pooling_cls=None``. None for no
            budget.
        stride_rule: how strides learn under a budget: ``"measured"``, by the losses with each map a
            sixteenth smaller, see `diffstride.MeasuredStrides`, or by their ``"gradient"`` with the
            optimiser.
            Measured strides move in the first four tenths of the steps, and their learning rate has
            no effect. None for ``"measured"`` where there is a budget of two strides or more, and
            neither a ``stride_phase`` nor a ``stride_penalty``, which are for gradients.
        weight_averaging: decay per step, from 0 to below 1, of a moving average of weights and
            statistics of norms. The network is tested with the average and ends with it. Strides
            are not averaged. None for no average.
        precision: precision of Lightning's `Trainer`, or ``"auto"`` for the fast one of the
            machine.
        channels_last: whether feature maps of images use the memory format `torch.channels_last`.
        accelerator: accelerator of the `Trainer`.
        devices: devices of the `Trainer`. Each process has its own batches, so an epoch has fewer
            steps in proportion.
        strategy: strategy of the `Trainer`, such as ``"ddp"``; not one that forks or spawns
            processes, as the summary would be lost with them.
        threads: CPU threads per process; None for torch's choice. Small maps are fastest on one.
        seed: seed of the initial weights and the order of the images.
        callbacks: further Lightning callbacks.
        progress_bar: whether to show a progress bar; None shows it in a terminal.

    Returns:
        The content of ``summary.json``: ``test_accuracy`` in percent, ``strides`` by layer,
        ``multiply_adds_start`` and ``multiply_adds_end`` per image, ``epochs``, ``seconds``, …
        With a budget, ``multiply_adds_start`` is counted after the strides were moved onto it.

    Raises:
        ValueError: an argument is out of its range, or ``workdir`` holds a run with other settings.

    >>> summary = train("runs/first", num_epochs=1)  # doctest: +SKIP
    """
    check_arguments(train, locals())
    num_epochs, seed, threads, budget = as_python((num_epochs, seed, threads, budget))
    check_options(locals())
    keep_freed_memory()
    if is_single_process(devices, strategy):
        set_main_process()
    if threads is not None:
        torch.set_num_threads(threads)
    workdir, callbacks = expand_home(workdir), check_callbacks(callbacks)
    data = datasets(seed=seed)
    with explain_build_errors("network"):
        network = build_network(model, data, seed)
    check_strides(network, stride_penalty=stride_penalty, budget=budget)
    allowed = None if budget is None else resolve_budget(budget, network, model, data)
    shared_out = 0 if budget is None else count_strides(network)
    rule = stride_rule or choose_rule(shared_out, stride_phase, stride_penalty)
    decay = getattr(network, "weight_decay", 0.0) if weight_decay is None else weight_decay
    check_range("weight_decay", decay)
    rates = stride_learning_rate, bias_learning_rate
    build_optimizer = partial(_build_optimizer, optimizer, network, decay, *rates)
    with explain_build_errors("optimizer or the schedule"):
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
            stride_rule=rule,
        )
    refuse_overruled_bindings("train.train")  # now, as all else that can be bound has been called
    given = network if isinstance(model, nn.Module) else None
    finished = find_finished(workdir, settings, given)
    if finished is not None:
        return finished
    precision = choose_precision(precision, accelerator)
    pictures = BoardPictures(every=ceil(num_epochs / BOARD_PICTURES))
    own = [*_build_callbacks(data.image_shape, stride_phase, allowed, rule), pictures]
    average = [] if weight_averaging is None else [MovingAverage(weight_averaging)]
    with quiet_lightning(), hold_folder(workdir):
        checkpoint, record, step = find_checkpoint(workdir / CHECKPOINTS, network, settings)
        save_config(workdir)
        size = f"{count_parameters(network):,} parameters"
        print_once(f"{data.name}: {size}, precision {precision}, in {workdir}")
        setup = (data.image_shape, label_smoothing, stride_penalty, channels_last, record)
        module = Classifier(network, build_optimizer(), schedule, *setup)
        trainer = build_trainer(
            workdir,
            step,
            [*own, *callbacks, *average],  # the average last, to include the projected strides
            progress_bar,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            precision=precision,
            max_epochs=num_epochs,
            log_every_n_steps=min(50, len(data.train)),
        )
        with name_errors(workdir):  # TensorBoard and pictures name no file where a disk is full
            fit(trainer, module, data, checkpoint)
            facts = {"budget": allowed, "stride_penalty": stride_penalty, "precision": precision}
            return finish(workdir, module, facts | describe_examples(data))


@contextmanager
def explain_build_errors(what: str) -> Iterator[None]:
    """Raise errors of other types than those of wrong arguments with what was being built.

    Raises:
        ValueError: a `RuntimeError` of torch, or a division by zero, a missing name or key.
    """
    try:
        yield
    except (RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(
            f"the {what} cannot be built ({type(error).__name__}: {error}): check its arguments"
        ) from error


def _build_optimizer(
    optimizer: Callable[..., Optimizer],
    network: nn.Module,
    weight_decay: float,
    stride_learning_rate: float | None,
    bias_learning_rate: float | None,
) -> Optimizer:
    """Build the optimiser; weight decay is twice the factor of the squared norm in the loss."""
    rates = stride_learning_rate, bias_learning_rate
    built = optimizer(parameter_groups(network, 2 * weight_decay, *rates))
    for group in built.param_groups:  # schedules and checkpoints read numbers from the groups
        group.update({name: as_python(value) for name, value in group.items()})
    return built


def _build_callbacks(
    image_shape: tuple[int, ...],
    stride_phase: tuple[float, float],
    budget: float | None,
    stride_rule: StrideRule,
) -> list[Any]:
    """Callbacks of the strides, in order: phase, budget, and the monitor of the result."""
    callbacks: list[Any] = [StrideMonitor("network"), TimeEstimate()]
    if budget is not None:
        loss = Classifier.batch_loss if stride_rule == "measured" else None
        example = torch.zeros(1, *image_shape)
        callbacks.insert(0, BudgetCallback(example, budget, "network", None, loss=loss))
    if tuple(stride_phase) != (0, 1):
        callbacks.insert(0, StridePhase(*stride_phase, network="network"))
    return callbacks
