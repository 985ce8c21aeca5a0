"""What the project uses of Lightning, from whichever of its two packages is installed.

All uses of private names of Lightning are here: the launcher of processes, the handler of SIGTERM
and the device of averaged weights. Tried with lightning 2.6.0 and 2.6.6 and with pytorch-lightning
2.6.6.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or find_spec("lightning"):
    import lightning.pytorch as pl
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.pytorch import callbacks, loggers, plugins
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
    from lightning.pytorch.utilities import exceptions, rank_zero_only
else:
    import pytorch_lightning as pl
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from pytorch_lightning import callbacks, loggers, plugins
    from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
    from pytorch_lightning.utilities import exceptions, rank_zero_only

__all__ = [
    "LightningEnvironment",
    "SLURMEnvironment",
    "WeightAveraging",
    "callbacks",
    "exceptions",
    "forks_processes",
    "is_single_process",
    "loggers",
    "pl",
    "plugins",
    "print_once",
    "rank_zero_only",
    "set_main_process",
    "stop_between_batches",
]

print_once = rank_zero_only(print)
"""`print` in the main process only."""


class WeightAveraging(callbacks.WeightAveraging):
    """Lightning's callback, with the average on the device of the training.

    Lightning takes the device of the module, which is moved to that of the training only later.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


def is_single_process(devices: Any, strategy: Any) -> bool:
    """Whether these arguments of a `Trainer` train in one process.

    >>> is_single_process(1, "auto"), is_single_process([0], "auto")
    (True, True)
    >>> is_single_process(1, "ddp"), is_single_process("auto", "auto")
    (False, False)
    """
    one = len(devices) == 1 if isinstance(devices, list) else str(devices) == "1"
    return one and strategy == "auto"


def set_main_process() -> None:
    """Make this process the main one of its run, whatever rank a job engine has given it.

    A task of a SLURM job that trains in a single process would otherwise print and log nothing.
    """
    rank_zero_only.rank = 0


def forks_processes(trainer: pl.Trainer) -> bool:
    """Whether the trainer forks or spawns its processes, as ``"auto"`` does in notebooks."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def stop_between_batches(trainer: pl.Trainer) -> None:
    """Have SIGTERM end the training before the next batch, in all processes.

    Lightning's own handler broadcasts at once, while the processes exchange gradients, which makes
    them hang: https://github.com/Lightning-AI/pytorch-lightning/issues/20806. This one sets a flag,
    which the training loop broadcasts before each batch.
    """
    connector = trainer._signal_connector

    def set_flag(number: int, frame: Any) -> None:
        launcher = trainer.strategy.launcher
        if launcher is not None and not connector.received_sigterm:
            launcher.kill(number)  # pyright: ignore[reportArgumentType]
        connector.received_sigterm = True

    connector._sigterm_notifier_fn = set_flag  # pyright: ignore[reportAttributeAccessIssue]
