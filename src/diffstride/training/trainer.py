"""Builds the Lightning `Trainer` of a run, with logs and checkpoints, and runs it."""

import logging
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from diffstride._commands import KILLED_BY
from diffstride.training.argument_types import shorten
from diffstride.training.checkpoints import CHECKPOINTS, AtomicCheckpointIO, Checkpoints, stopped
from diffstride.training.classifier import Classifier
from diffstride.training.data import Datasets
from diffstride.training.lightning_compat import (
    LightningEnvironment,
    SLURMEnvironment,
    callbacks,
    exceptions,
    forks_processes,
    is_single_process,
    loggers,
    pl,
    stop_between_batches,
)
from diffstride.training.metrics_log import MetricsFile


class ProgressBar(callbacks.TQDMProgressBar):
    """Lightning's bar, which counts epochs from 1 as the lines do."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        epoch = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.train_progress_bar.set_description(epoch)


def build_trainer(
    workdir: Path, step: int, callbacks: Iterable[Any], progress_bar: bool | None, **options: Any
) -> pl.Trainer:
    """Build a `Trainer` that logs and saves checkpoints in ``workdir``.

    Args:
        workdir: the run folder.
        step: number of steps the run has taken so far, 0 for a new run; logs keep rows up to it.
        callbacks: callbacks, called before the checkpoints are saved.
        progress_bar: whether to show a progress bar; None shows it in a terminal.
        options: further arguments of Lightning's `Trainer`.

    Raises:
        ValueError: the strategy forks or spawns its processes, see `check_strategy`.
    """
    # By name: Lightning shows another bar where rich is installed.
    shown = sys.stdout.isatty() if progress_bar is None else progress_bar
    bar = [ProgressBar()] if shown else []
    # A single process ignores the other tasks that a job engine has started.
    single = is_single_process(options.get("devices"), options.get("strategy"))
    environment = [LightningEnvironment()] * single
    # Rows of epochs that are repeated are removed: TensorBoard drops events from purge_step on.
    board = loggers.TensorBoardLogger(
        workdir,
        name="tensorboard",
        version="",
        default_hp_metric=False,
        purge_step=step + 1 if step else 0,
    )
    trainer = pl.Trainer(
        logger=[board, MetricsFile(workdir / "metrics.csv", step)],
        callbacks=[*callbacks, Checkpoints(workdir / CHECKPOINTS), *bar],
        plugins=[AtomicCheckpointIO(), *environment],
        default_root_dir=workdir,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=bool(bar),
        use_distributed_sampler=False,  # the sampler splits batches itself
        **options,
    )
    check_strategy(options.get("strategy"), forks_processes(trainer))
    stop_between_batches(trainer)
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(environment, SLURMEnvironment):
        # Requeueing saves in the middle of an epoch and resumes from there without our checks.
        environment.auto_requeue = False
    return trainer


def check_strategy(strategy: Any, forks: bool = False) -> None:
    """Refuse strategies that fork or spawn processes: the results would be lost with them.

    Raises:
        ValueError: ``forks`` is set, or the name of the strategy says that it forks or spawns.
    """
    if forks or any(word in str(strategy) for word in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"strategy={strategy!r} trains in forked or spawned processes, which cannot return the "
            "results: use 'ddp' in a script, or one device"
        )


def check_callbacks(callbacks: Iterable[Any]) -> list[Any]:
    """Return callbacks as a list, and refuse anything else in it.

    Raises:
        ValueError: one is no Lightning callback.
    """
    found = list(callbacks)
    if not all(isinstance(each, pl.Callback) for each in found):
        raise ValueError(
            f"callbacks must be a list of Lightning callbacks, but got {shorten(found)}"
        )
    return found


def fit(trainer: pl.Trainer, module: Classifier, data: Datasets, checkpoint: Any) -> None:
    """Train, from a checkpoint if there is one.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl+C; Lightning itself would exit the program.
        SystemExit: SIGTERM has ended the training; the exit code is 143, as in shells. Lightning's
            own code is 0, with which a script would go on.
    """
    handler = signal.getsignal(signal.SIGINT)
    # Lightning starts the workers of the first epoch before it sets that epoch.
    sampler: Any = data.train.sampler
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(module.record.get("epochs", 0))
    try:
        trainer.fit(module, data.train, data.test, ckpt_path=checkpoint)
    except exceptions.SIGTERMException as error:
        error.code = KILLED_BY + signal.SIGTERM
        raise
    except RuntimeError as error:
        if not trainer.received_sigterm:
            raise
        # The signal has also ended a worker of the data, before it could outlive the training.
        module.print(stopped(Path(trainer.default_root_dir) / CHECKPOINTS))
        raise exceptions.SIGTERMException(KILLED_BY + signal.SIGTERM) from error
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)  # Lightning ignores the signal from then on
        raise KeyboardInterrupt from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence those logs and warnings of Lightning that do not apply to these trainings."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), ExitStack() as stack:
        for logger, level in levels.items():
            logger.setLevel(logging.WARNING)  # no tips, no list of absent hardware
            stack.callback(logger.setLevel, level)
        # Workers would only copy images that are in memory. Larger sets have their own number.
        warnings.filterwarnings("ignore", ".*does not have many workers")
        # With several processes an epoch has fewer steps; its end is logged in any case.
        warnings.filterwarnings("ignore", ".*smaller than the logging interval")
        # Lightning 2.6 uses a name that newer releases of torch have changed.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        yield
