"""Exponential moving average of a network's weights, for networks with learnable strides."""

from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffstride.strides import stride_layers
from diffstride.training.lightning_compat import WeightAveraging


class MovingAverage(WeightAveraging):
    """Averages weights and the statistics of norms: ``w <- decay w + (1 - decay) w'``.

    The average is updated after every step. Its strides are those of the network: the map sizes to
    which its latest weights belong, at a cost within the budget. The network is tested with it and
    has it when training ends; checkpoints hold it as ``state_dict``.

    Args:
        decay: from 0 to below 1.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        average = self._average_model
        assert average is not None
        layers = stride_layers(pl_module)
        with torch.no_grad():
            for name, averaged in stride_layers(average.module).items():
                averaged.strides.copy_(layers[name].strides)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        # A run that was killed after its last checkpoint is resumed without an end of training.
        self.on_train_end(trainer, pl_module)
