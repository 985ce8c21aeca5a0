"""The `LightningModule` of a run: training and test steps, logging, and the record of the run."""

import math
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from diffstride._wording import counted
from diffstride.strides import stride_penalty, stride_scalars
from diffstride.training.augment import seeded_generator
from diffstride.training.lightning_compat import pl
from diffstride.training.network_cost import measure_cost
from diffstride.training.run_summary import layer_strides
from diffstride.training.schedules import build_schedule

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    """Trains a classifier with cross-entropy, and logs losses, accuracies, costs and strides.

    Args:
        network: from images ``(B, C, H, W)`` or sounds ``(B, C, N)`` to logits ``(B, classes)``.
        optimizer: optimiser of the network's parameters.
        schedule: as for `build_schedule`, one step per batch; None for a constant learning rate.
        image_shape: channels, height and width of images; or channels and length of sounds.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1].
        stride_penalty: weight of `diffstride.stride_penalty` in the loss, at least 0.
        channels_last: whether feature maps of images use the memory format `torch.channels_last`.
        record: facts of the run so far, saved with every checkpoint.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        schedule: Any,
        image_shape: tuple[int, ...],
        label_smoothing: float,
        stride_penalty: float,
        channels_last: bool,
        record: dict[str, Any],
    ) -> None:
        super().__init__()
        is_image = len(image_shape) == 3  # other tensors have no such memory format
        self.layout = torch.channels_last if channels_last and is_image else torch.contiguous_format
        self.network = network.to(memory_format=self.layout)
        self.optimizer = optimizer
        self.schedule = schedule
        self.image_shape = image_shape
        self.label_smoothing = label_smoothing
        self.stride_penalty = stride_penalty
        self.record = record
        # "disable" keeps nan, the loss of a training that has diverged, which is then refused.
        self.test_loss = MeanMetric(nan_strategy="disable")
        self.test_accuracy = MeanMetric(nan_strategy="disable")

    def configure_optimizers(self) -> Any:
        # The number of steps depends on the number of processes, which is known only now.
        total_steps = int(self.trainer.estimated_stepping_batches)
        self._check_steps(total_steps)
        if self.schedule is None:
            return self.optimizer
        schedule = build_schedule(self.schedule, self.optimizer, total_steps)
        return [self.optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _check_steps(self, total_steps: int) -> None:
        processes = counted(self.trainer.world_size, "process", "processes")
        if not total_steps:
            raise ValueError(
                f"there are too few images for one step of {processes}: use a smaller batch_size "
                "or fewer devices"
            )
        if self.record.setdefault("steps", total_steps) != total_steps:
            raise ValueError(
                f"this run was started with {counted(self.record['steps'], 'step')}, but "
                f"{processes} would make it {total_steps}: resume it with the same number of "
                "devices"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self._logits(images)
        loss = self._cross_entropy(logits, targets)
        if self.stride_penalty:
            loss = loss + self.stride_penalty * stride_penalty(self.network)
        self._check_finite("the training loss", float(loss.detach()))
        step = {"loss": loss.detach(), "accuracy": _hits(logits, targets).mean()}
        self.log_dict(step, on_step=True, on_epoch=False, prog_bar=True, logger=False)
        epoch = {f"train_{name}": value for name, value in step.items()}
        self.log_dict(
            epoch,
            on_step=False,
            on_epoch=True,
            logger=False,
            sync_dist=True,
            batch_size=len(images),
        )
        return loss

    def batch_loss(self, batch: Batch) -> Tensor:
        """The cross-entropy on a batch, without the penalty of the strides."""
        images, targets = batch
        return self._cross_entropy(self._logits(images), targets)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def _check_finite(self, what: str, value: float) -> None:
        """Stop a training that has diverged, before its strides do and before a checkpoint.

        Raises:
            ValueError: the value is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(
                f"{what} is {value} after {counted(self.global_step, 'step')}: training has "
                "diverged; choose lower learning rates, and another workdir for them"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # Every process loads all test images and takes its share. A distributed sampler would
        # repeat images, to make the shares equal, and count them twice.
        images, targets = (part[self.global_rank :: self.trainer.world_size] for part in batch)
        logits = self._logits(images)
        self.test_loss.update(F.cross_entropy(logits, targets, reduction="none"))
        self.test_accuracy.update(_hits(logits, targets))
        self.log("test_loss", self.test_loss, prog_bar=True, logger=False)
        self.log("test_accuracy", self.test_accuracy, prog_bar=True, logger=False)

    def _logits(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous(memory_format=self.layout))

    def on_fit_start(self) -> None:
        self.clock = time.perf_counter()

    def on_validation_epoch_start(self) -> None:
        # Measured now, as a callback that averages weights swaps the averages in, strides included,
        # only for the test.
        cost = measure_cost(self.network, self.image_shape)
        self.tested = cost.scalars() | stride_scalars(self.network)

    def on_train_start(self) -> None:
        cost = measure_cost(self.network, self.image_shape)
        self.record.setdefault("multiply_adds_start", cost.multiply_adds)
        self.record.setdefault("strides_start", layer_strides(self.network))
        if self.global_step == 0:
            self._log(cost.scalars() | self._learning_rates())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Seeded per batch, so that dropout draws the same numbers in a resumed run.
        words = self.record["settings"]["seed"], self.current_epoch, batch_idx, self.global_rank
        torch.manual_seed(seeded_generator(*words).initial_seed())

    def on_train_batch_end(self, *args: Any) -> None:
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every and self.global_step % every == 0:
            self._log(self._metrics("loss", "accuracy") | self._learning_rates())

    def on_train_epoch_end(self) -> None:
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        metrics = self._metrics("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        self._check_finite("the test loss", metrics["test_loss"])
        self.record["seconds"] = self.record.get("seconds", 0.0) + seconds
        self.record["epochs"] = self.current_epoch + 1
        self.record["test_accuracy"] = round(100 * metrics["test_accuracy"], 4)
        self.record["multiply_adds_end"] = self.tested["multiply_adds"]
        scalars = metrics | {"epoch": self.current_epoch + 1} | self._learning_rates()
        self._log(scalars | self.tested)
        self.print(
            f"epoch {self.current_epoch + 1:>3}/{self.trainer.max_epochs}"
            f"  loss {metrics['train_loss']:.4f}"
            f"  accuracy {100 * metrics['train_accuracy']:.2f} %"
            f"  test accuracy {100 * metrics['test_accuracy']:.2f} %"
            f"  multiply-adds {self.tested['multiply_adds'] / 1e6:.2f} M  {seconds:.1f} s"
        )
        sys.stdout.flush()  # progress bars replace self.print, and take no argument flush

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.record

    def _metrics(self, *names: str) -> dict[str, float]:
        metrics = self.trainer.callback_metrics
        return {name: float(metrics[name]) for name in names}

    def _learning_rates(self) -> dict[str, float]:
        names = {"kernels": "learning_rate", "strides": "stride_learning_rate"}
        groups = self.optimizer.param_groups
        return {names[each["name"]]: each["lr"] for each in groups if each["name"] in names}

    def _log(self, scalars: dict[str, float]) -> None:
        # Not by self.log: these rows must be on the disk before the checkpoint, or a run killed
        # between the two would lack them. Here `step` is the number of steps taken.
        for logger in self.loggers:
            logger.log_metrics(scalars, step=self.global_step)
            logger.save()


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is that of the target, 0 elsewhere: ``(B,)``."""
    labels = targets.argmax(1) if targets.is_floating_point() else targets
    return (logits.argmax(1) == labels).float()
