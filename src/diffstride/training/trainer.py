"""The Lightning `Trainer` of a run: its logs, its checkpoints, and none of its advice."""

import logging
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from diffstride.training.checkpoints import CHECKPOINTS, AtomicCheckpointIO, Checkpoints
from diffstride.training.data import Datasets
from diffstride.training.lightning_compat import (
    LightningEnvironment,
    SLURMEnvironment,
    forks_processes,
    is_single_process,
    loggers,
    pl,
    stop_between_batches,
)
from diffstride.training.metrics_log import MetricsFile


def build_trainer(
    workdir: Path, step: int, callbacks: Iterable[Any], progress_bar: bool | None, **options: Any
) -> pl.Trainer:
    """A trainer that leaves in ``workdir`` what a killed run continues from.

    Arguments:
        workdir: the folder of the run.
        step: number of steps the run has taken so far, 0 for a new one; logs keep what is up to it.
        callbacks: called before the checkpoints are saved.
        progress_bar: whether to show one; None does so in a terminal.
        options: further arguments of Lightning's `Trainer`.

    Raises:
        ValueError: the strategy forks or spawns its processes, see `check_strategy`.
    """
    # A single process ignores the other tasks that a job engine has started.
    single = is_single_process(options.get("devices"), options.get("strategy"))
    environment = [LightningEnvironment()] * single
    # Epochs that will be run again leave both logs: TensorBoard drops events from purge_step on.
    board = loggers.TensorBoardLogger(
        workdir,
        name="tensorboard",
        version="",
        default_hp_metric=False,
        purge_step=step + 1 if step else 0,
    )
    trainer = pl.Trainer(
        logger=[board, MetricsFile(workdir / "metrics.csv", step)],
        callbacks=[*callbacks, Checkpoints(workdir / CHECKPOINTS)],
        plugins=[AtomicCheckpointIO(), *environment],
        default_root_dir=workdir,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty() if progress_bar is None else progress_bar,
        use_distributed_sampler=False,  # the data sets deal out their own batches
        **options,
    )
    check_strategy(options.get("strategy"), forks_processes(trainer))
    stop_between_batches(trainer)
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment):
        # It would save in the midst of an epoch, and go on from there past all checks of this run.
        environment.auto_requeue = False
    return trainer


def check_strategy(strategy: Any, forks: bool = False) -> None:
    """Refuse a strategy whose processes end with the results that they alone have.

    Raises:
        ValueError: ``forks``, or the strategy's name says that it forks or spawns.
    """
    if forks or any(word in str(strategy) for word in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"strategy={strategy!r} trains in processes that take the results with them: use 'ddp' "
            "in a script, or one device"
        )


def fit(trainer: pl.Trainer, module: pl.LightningModule, data: Datasets, checkpoint: Any) -> None:
    """Train, from the checkpoint if there is one.

    Raises:
        KeyboardInterrupt: by the user, for which Lightning would end the whole program.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, data.train, data.test, ckpt_path=checkpoint)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)  # which Lightning ignores from then on
        raise KeyboardInterrupt from error


@contextmanager
def without_advice() -> Iterator[None]:
    """Without the notes of Lightning that nobody using this program can act on."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), ExitStack() as stack:
        for logger, level in levels.items():
            logger.setLevel(logging.WARNING)  # no tips, no list of absent hardware
            stack.callback(logger.setLevel, level)
        # The images lie decoded in memory: a worker would only copy them to another process.
        warnings.filterwarnings("ignore", ".*does not have many workers")
        # Several processes share the steps of an epoch; its end is logged in any case.
        warnings.filterwarnings("ignore", ".*smaller than the logging interval")
        # Lightning 2.6 calls what newer releases of torch have renamed.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        yield
