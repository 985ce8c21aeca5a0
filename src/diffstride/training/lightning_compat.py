"""What the examples use of Lightning, from whichever of its two packages is installed."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or find_spec("lightning"):
    import lightning.pytorch as pl
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.pytorch import callbacks, loggers, plugins
    from lightning.pytorch.strategies.launchers import (
        _MultiProcessingLauncher as MultiProcessingLauncher,
    )
    from lightning.pytorch.utilities import exceptions, rank_zero_only
else:
    import pytorch_lightning as pl
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from pytorch_lightning import callbacks, loggers, plugins
    from pytorch_lightning.strategies.launchers import (
        _MultiProcessingLauncher as MultiProcessingLauncher,
    )
    from pytorch_lightning.utilities import exceptions, rank_zero_only

__all__ = [
    "LightningEnvironment",
    "MultiProcessingLauncher",
    "SLURMEnvironment",
    "callbacks",
    "exceptions",
    "is_alone",
    "loggers",
    "pl",
    "plugins",
    "rank_zero_only",
    "say",
    "train_alone",
]

say = rank_zero_only(print)  # once, however many processes train together


def is_alone(devices: Any, strategy: Any) -> bool:
    """Whether a process trains without others, as these arguments of a `Trainer` have it.

    >>> is_alone(1, "auto"), is_alone([0], "auto"), is_alone(1, "ddp"), is_alone("auto", "auto")
    (True, True, False, False)
    """
    one = len(devices) == 1 if isinstance(devices, list) else str(devices) == "1"
    return one and strategy == "auto"


def train_alone() -> None:
    """Take this process for the first of its run, whatever number a job engine has given it.

    A task of a SLURM job that trains alone would otherwise print and log nothing.
    """
    rank_zero_only.rank = 0
