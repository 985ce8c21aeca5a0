"""A moving average of a network's weights: Lightning's, and what learnable strides need."""

from typing import Any

from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffstride.strides import project_strides
from diffstride.training.lightning_compat import callbacks


class MovingAverage(callbacks.WeightAveraging):
    """The average ``w <- decay w + (1 - decay) w'`` of weights, statistics and strides by steps.

    The network is tested by the average, and has it when training ends; checkpoints hold it as
    ``state_dict``.

    Arguments:
        decay: from 0 to below 1.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # The module itself is moved to its device only later.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    # Weights are exchanged through `.data`, of which a layer on an accelerator learns nothing: it
    # would go on with the sizes of the other network's strides. Projecting reads them anew.

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        project_strides(pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        project_strides(pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        # Not only at the end of training: a run that was killed after its last checkpoint has none.
        self._copy_average_to_current(pl_module)
        project_strides(pl_module)
