"""What the examples use of Lightning, from whichever of its two packages is installed."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING or find_spec("lightning"):
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.loggers.logger import Logger
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.utilities import rank_zero_only
else:
    import pytorch_lightning as pl
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.callbacks import Checkpoint
    from pytorch_lightning.loggers import TensorBoardLogger
    from pytorch_lightning.loggers.logger import Logger
    from pytorch_lightning.plugins.io import TorchCheckpointIO
    from pytorch_lightning.utilities import rank_zero_only

__all__ = [
    "Checkpoint",
    "Logger",
    "MisconfigurationException",
    "TensorBoardLogger",
    "TorchCheckpointIO",
    "pl",
    "rank_zero_only",
]
