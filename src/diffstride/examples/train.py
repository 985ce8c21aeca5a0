"""Train a network on images and learn its strides: the main job, with or without Gin."""

import hashlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gin
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffstride.callbacks import BudgetCallback, StrideMonitor
from diffstride.examples.backend import loggers, pl, rank_zero_only
from diffstride.examples.checkpoints import (
    AtomicCheckpointIO,
    Checkpoints,
    newest_checkpoint,
)
from diffstride.examples.data import Datasets, load_datasets
from diffstride.examples.files import atomic_file
from diffstride.examples.hardware import choose_precision, keep_freed_memory
from diffstride.examples.logs import MetricsFile
from diffstride.examples.module import Classifier
from diffstride.examples.report import (
    format_summary,
    layer_strides,
    measure_cost,
    read_summary,
    save_summary,
)
from diffstride.examples.schedules import build_schedule
from diffstride.pooling import stride_layers
from diffstride.resnet import identity, parameter_groups, resnet18

CHECKPOINTS = "checkpoints"
STRIDED = "strided"

say = rank_zero_only(print)


def train(
    workdir: str | Path = "runs/train",
    model: Callable[..., nn.Module] = resnet18,
    datasets: Callable[..., Datasets] = load_datasets,
    num_epochs: int = 10,
    optimizer: Callable[..., Optimizer] = torch.optim.SGD,
    schedule: Callable[..., LRScheduler] | None = None,
    stride_learning_rate: float | None = None,
    weight_decay: float | None = None,
    label_smoothing: float = 0.0,
    stride_penalty: float = 0.0,
    budget: float | str | None = None,
    precision: str | int = "32-true",
    channels_last: bool = True,
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
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
        model: builds the network from ``num_output_classes`` and ``in_channels``; or a network.
        datasets: builds the data sets from ``seed``, as `load_datasets` does.
        num_epochs: passes over the training images, at least 1.
        optimizer: builds the optimiser from the groups of `parameter_groups`.
        schedule: builds a schedule by step, see `build_schedule`; None keeps the learning rate.
        stride_learning_rate: of the strides, at the peak of the schedule; None for the weights'.
        weight_decay: L2 penalty of the kernels; None for the network's own ``weight_decay``, or 0.
        label_smoothing: share of each target that is given to all classes alike, in [0, 1].
        stride_penalty: ``lambda`` of the paper's regulariser, the weight in the loss of
            `diffstride.stride_penalty`; at least 0.
        budget: multiply-adds that the strides are held to after every step, see
            `diffstride.CostBudget`: up to 100 a fraction of those of the network at the start,
            above that their number for one image; ``"strided"`` for those of the same network with
            strided convolutions (``model`` is called with ``pooling_cls=None``). None for no limit.
        precision: of Lightning's `Trainer`, or ``"auto"`` for what this machine is fast at.
        channels_last: whether maps are kept with their channels innermost in memory.
        accelerator: of the `Trainer`, as are ``devices`` and ``strategy``.
        devices: number of processes, each with a batch of its own.
        strategy: how they work together, for instance ``"ddp"``.
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
    _check_range("num_epochs", num_epochs, 1, float("inf"))
    _check_range("label_smoothing", label_smoothing, 0, 1)
    _check_range("stride_penalty", stride_penalty, 0, float("inf"))
    keep_freed_memory()
    if threads is not None:
        _check_range("threads", threads, 1, float("inf"))
        torch.set_num_threads(threads)
    workdir = Path(workdir)
    data = datasets(seed=seed)
    network = _build_network(model, data, seed)
    _check_strides(network, stride_penalty=stride_penalty, budget=budget)
    allowed = None if budget is None else _resolve_budget(budget, network, model, data)
    decay = getattr(network, "weight_decay", 0.0) if weight_decay is None else weight_decay

    def build_optimizer() -> Optimizer:
        return optimizer(parameter_groups(network, decay, stride_learning_rate))

    settings = {
        "dataset": data.name,
        "batch_size": data.train.batch_size,
        **data.settings,
        "num_epochs": num_epochs,
        "label_smoothing": label_smoothing,
        "seed": seed,
        "network": _digest(network),
        **({"budget": allowed} if allowed else {}),
        **({"stride_penalty": stride_penalty} if stride_penalty else {}),
        **_describe_optimization(build_optimizer, schedule, num_epochs * len(data.train)),
    }
    finished = _find_finished(workdir, settings)
    if finished is not None:
        return finished
    checkpoint, record, step = _find_checkpoint(workdir / CHECKPOINTS, network, settings)
    _open_workdir(workdir)
    precision = choose_precision(precision, accelerator)
    say(f"{data.name}: {_count(network):,} parameters, precision {precision}, in {workdir}")
    setup = (data.image_shape, label_smoothing, stride_penalty, channels_last, record)
    module = Classifier(network, build_optimizer(), schedule, *setup)
    callbacks = [StrideMonitor("network"), *callbacks]
    if allowed is not None:  # before all others, so that they see and log what is used
        example = torch.zeros(1, *data.image_shape)
        callbacks.insert(0, BudgetCallback(example, allowed, "network", log=None))
    with _without_advice():
        trainer = _build_trainer(
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
        trainer.fit(module, data.train, data.test, ckpt_path=checkpoint)
    facts = {"budget": allowed, "stride_penalty": stride_penalty, "precision": precision}
    return _finish(workdir, module, facts)


def _check_range(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{name} must be from {lowest} to {highest}, got {value!r}")


def _find_finished(workdir: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    summary = read_summary(workdir)
    if summary is not None:
        _check_settings(workdir, summary.get("settings"), settings)
        say(f"{workdir} holds this run, finished:\n{format_summary(summary)}", flush=True)
    return summary


def _finish(workdir: Path, module: Classifier, facts: dict[str, Any]) -> dict[str, Any]:
    record, settings = module.record, module.record["settings"]
    measured = ("test_accuracy", "multiply_adds_start", "multiply_adds_end", "epochs")
    summary = {
        **{name: record[name] for name in measured},
        "seconds": round(record["seconds"], 1),
        "strides": layer_strides(module.network),
        "strides_start": record["strides_start"],
        "dataset": settings["dataset"],
        "seed": settings["seed"],
        "parameters": _count(module.network),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **facts,
        "settings": settings,
    }
    if module.trainer.is_global_zero:
        save_summary(workdir, summary, module.network, module.image_shape)
    say(format_summary(summary), flush=True)
    return summary


def _build_network(model: Callable[..., nn.Module], data: Datasets, seed: int) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    torch.manual_seed(seed)
    network = model(num_output_classes=data.num_classes, in_channels=data.image_shape[0])
    if getattr(network, "output_activation", identity) is not identity:
        raise ValueError(
            "the loss applies the softmax itself: leave output_activation of the network None"
        )
    return network


def _check_strides(network: nn.Module, **options: Any) -> None:
    for name, value in options.items():
        if value and not stride_layers(network):
            raise ValueError(
                f"{name}={value!r} needs learnable strides, which the network has not: set its "
                "pooling to DiffStride, or leave the option out"
            )


def _resolve_budget(
    budget: float | str, network: nn.Module, model: Callable[..., nn.Module], data: Datasets
) -> float:
    """The multiply-adds of one image that a budget stands for."""
    if isinstance(budget, (int, float)) and budget > 0:
        if budget > 100:
            return budget
        return budget * measure_cost(network, data.image_shape).multiply_adds
    if budget != STRIDED or isinstance(model, nn.Module):
        raise ValueError(
            "budget must be a number above 0, or 'strided' with a model that is built from "
            f"pooling_cls, but got {budget!r}"
        )
    try:
        strided = _build_network(partial(model, pooling_cls=None), data, seed=0)
    except TypeError as error:
        raise ValueError(f"budget='strided' needs a model with pooling_cls: {error}") from error
    return measure_cost(strided, data.image_shape).multiply_adds


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _digest(subject: Any) -> str:
    return hashlib.sha256(repr(subject).encode()).hexdigest()[:12]


def _describe_optimization(
    build_optimizer: Callable[[], Optimizer],
    schedule: Callable[..., LRScheduler] | None,
    total_steps: int,
) -> dict[str, str]:
    # On an optimiser to throw away: a schedule rewrites the learning rates of the one it is given.
    optimizer = build_optimizer()
    description = {"optimizer": _digest(optimizer), "schedule": "constant"}
    if schedule is not None:
        state = build_schedule(schedule, optimizer, total_steps).state_dict()
        description["schedule"] = _digest(state)
    return description


def _check_settings(workdir: Path, found: Any, expected: dict[str, Any]) -> None:
    found = found if isinstance(found, dict) else {}
    names = dict.fromkeys([*expected, *found])
    different = [name for name in names if found.get(name) != expected.get(name)]
    if different:
        raise ValueError(
            f"{workdir} holds a run that differs in {', '.join(different)}: "
            "choose another workdir, or remove this one"
        )


def _find_checkpoint(
    folder: Path, network: nn.Module, settings: dict[str, Any]
) -> tuple[Path | None, dict[str, Any], int]:
    found = newest_checkpoint(folder, network)
    if found is None:
        return None, {"settings": settings}, 0
    path, checkpoint = found
    record = checkpoint["run"]
    _check_settings(folder.parent, record["settings"], settings)
    say(f"continuing after epoch {record['epochs']} from {path}")
    return path, record, checkpoint["global_step"]


@rank_zero_only
def _open_workdir(workdir: Path) -> None:
    """Make the folder, see that it takes files, and save the Gin configuration if there is one."""
    config = gin.operative_config_str()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
        if config:
            with atomic_file(workdir / "operative_config.gin") as file:
                file.write(config.encode())
    except OSError as error:
        raise OSError(
            f"cannot write to workdir {str(workdir)!r} ({error.strerror}): choose another one"
        ) from error


def _build_trainer(
    workdir: Path, step: int, callbacks: Iterable[Any], progress_bar: bool | None, **options: Any
) -> pl.Trainer:
    # Epochs that will be run again leave both logs: TensorBoard drops events from purge_step on.
    board = loggers.TensorBoardLogger(
        workdir,
        name="tensorboard",
        version="",
        default_hp_metric=False,
        purge_step=step + 1 if step else 0,
    )
    return pl.Trainer(
        logger=[board, MetricsFile(workdir / "metrics.csv", step)],
        callbacks=[*callbacks, Checkpoints(workdir / CHECKPOINTS)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=workdir,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty() if progress_bar is None else progress_bar,
        use_distributed_sampler=False,  # the data sets deal out their own batches
        **options,
    )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without the notes of Lightning that nobody using this program can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no tips, no list of absent hardware
    with warnings.catch_warnings():
        # The images lie decoded in memory: a worker would only copy them to another process.
        warnings.filterwarnings("ignore", ".*does not have many workers")
        # Several processes share the steps of an epoch; its end is logged in any case.
        warnings.filterwarnings("ignore", ".*smaller than the logging interval")
        # Lightning 2.6 calls what newer releases of torch have renamed.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        yield
