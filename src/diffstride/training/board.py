"""What TensorBoard shows of a run beside its scalars: strides and windows, and hyperparameters."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard.summary import hparams

from diffstride.plots import trajectories_in
from diffstride.training.lightning_compat import callbacks, loggers, pl
from diffstride.training.metrics_log import MetricsFile
from diffstride.training.run_summary import draw

DPI = 100
LONG = ("network",)  # settings that would fill the table of hyperparameters


class BoardPictures(callbacks.Callback):
    """Draws strides and windows for TensorBoard, and notes the hyperparameters at the end.

    Without a `TensorBoardLogger` it does nothing.

    Args:
        every: epochs between two pictures, at least 1; the last epoch always has one.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        boards = list(writers(trainer))
        if not boards or (epoch % self.every and epoch != trainer.max_epochs):
            return
        files = [log for log in trainer.loggers if isinstance(log, MetricsFile)]
        moves = trajectories_in(row for file in files for row in file.rows.values())
        for name, figure in draw(pl_module.network, pl_module.image_shape, moves).items():
            image = pixels(figure)
            for board in boards:
                board.add_image(name, image, trainer.global_step, dataformats="HWC")

    def on_train_end(self, trainer: "pl.Trainer", pl_module: Any) -> None:
        record = pl_module.record
        if "test_accuracy" not in record:  # no epoch was trained
            return
        # The names are those of scalars in the log, whose last values TensorBoard shows.
        results = {
            "test_accuracy": record["test_accuracy"] / 100,
            "multiply_adds": record["multiply_adds_end"],
        }
        summaries = hparams(dict(flat(record["settings"])), results)
        for board in writers(trainer):
            for summary in summaries:
                board.file_writer.add_summary(summary)
            board.flush()


def writers(trainer: "pl.Trainer") -> Iterator[Any]:
    """The writers of the TensorBoard logs, in the main process alone."""
    if trainer.is_global_zero:
        for log in trainer.loggers:
            if isinstance(log, loggers.TensorBoardLogger):
                yield log.experiment


def pixels(figure: Figure) -> np.ndarray:
    """A figure on white, as pixels ``(H, W, 3)`` from 0 to 255."""
    figure.set(dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as numbers and texts, named by their path.

    >>> dict(flat({"seed": 0, "optimizer": {"lr": 0.1}, "sizes": [8, 8]}))
    {'seed': 0, 'optimizer/lr': 0.1, 'sizes': '[8, 8]'}
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        elif f"{prefix}{key}" not in LONG:
            plain = isinstance(value, bool | int | float | str)
            yield f"{prefix}{key}", value if plain else str(value)
