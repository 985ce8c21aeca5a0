"""Lightning callbacks for networks with learnable strides."""

from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import nn

from diffstride.cost.budget import CostBudget
from diffstride.graph.leaf_modules import as_leaves
from diffstride.strides import project_strides, stride_layers, stride_scalars

if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    try:
        import lightning.pytorch as pl
    except ImportError:
        import pytorch_lightning as pl


class StrideMonitor(pl.Callback):
    """Projects learnable strides onto their limits after each step, and logs them.

    The strides go to all loggers of the trainer as ``stride/LAYER/AXIS``, once before the first
    step and then every ``log_every_n_steps`` of the trainer. ``step`` is the number of optimiser
    steps taken. It works with any `LightningModule` that contains the layers.

    In a plain loop these lines do the same::

        optimizer.step()
        project_strides(model)  # from diffstride
        print(stride_scalars(model))  # from diffstride

    Args:
        network: attribute of the `LightningModule` that contains the network, left out of the
            logged names; with ``""`` names start at the `LightningModule`.

    >>> trainer = pl.Trainer(callbacks=[StrideMonitor()])  # doctest: +SKIP
    """

    def __init__(self, network: str = "") -> None:
        self.network = network

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        project_strides(pl_module)
        self._logged = -1
        if trainer.global_step == 0:
            self._log(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *args: Any
    ) -> None:
        project_strides(pl_module)
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every and trainer.global_step % every == 0:
            self._log(trainer, pl_module)

    # Callbacks that average weights swap them through `.data`. Layers on an accelerator do not
    # notice and would keep the strides they have read; projecting reads them again.

    def on_validation_batch_start(
        self,
        trainer: "pl.Trainer",
        pl_module: "pl.LightningModule",
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            project_strides(pl_module)

    def on_validation_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        project_strides(pl_module)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def _log(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        # With accumulated gradients several batches belong to one step.
        if not trainer.loggers or not trainer.is_global_zero or trainer.global_step == self._logged:
            return
        self._logged = trainer.global_step
        scalars = stride_scalars(pl_module.get_submodule(self.network))
        for logger in trainer.loggers if scalars else ():
            logger.log_metrics(scalars, step=trainer.global_step)


class StridePhase(pl.Callback):
    """Trains learnable strides during one phase of the training only.

    Outside the phase the gradients of the strides are set to None before each optimiser step. So
    kernels can train on fixed map sizes before and after the phase.

    Args:
        start: share of the training steps after which strides start to learn, from 0 to 1.
        stop: share after which they stop to learn, from ``start`` to 1. Shares refer to the steps
            of the trainer's ``max_epochs`` or ``max_steps``, even if training stops earlier.
        network: attribute of the `LightningModule` that contains the network; ``""`` for the
            module itself.

    Raises:
        ValueError: a share is out of its range; or the training has no end or several optimisers.

    >>> trainer = pl.Trainer(callbacks=[StridePhase(0.1, 0.6)])  # doctest: +SKIP
    """

    def __init__(self, start: float = 0.0, stop: float = 1.0, network: str = "") -> None:
        are_numbers = isinstance(start, Real) and isinstance(stop, Real)
        if not are_numbers or not 0 <= start <= stop <= 1:
            raise ValueError(
                f"StridePhase needs shares 0 <= start <= stop <= 1, but got {start!r} and {stop!r}"
            )
        self.start, self.stop, self.network = start, stop, network

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                f"StridePhase({self.start}, {self.stop}) needs the number of training steps, but "
                "the training has no end: give the trainer max_epochs or max_steps"
            )
        if len(trainer.optimizers) > 1:
            raise ValueError(
                f"StridePhase({self.start}, {self.stop}) needs one optimiser, but this training "
                f"has {len(trainer.optimizers)}: set the gradients of the strides to None in the "
                "module itself"
            )
        self.first, self.last = self.start * steps, self.stop * steps

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Any
    ) -> None:
        if self.first <= trainer.global_step < self.last:
            return
        for layer in stride_layers(pl_module.get_submodule(self.network)).values():
            parameter: Any = layer.strides
            parameter.grad = None  # not zero: optimisers skip it, without decay and momentum


class BudgetCallback(pl.Callback):
    """Keeps the multiply-adds of a network at a budget with `diffstride.CostBudget`.

    It projects the strides after each step. Its state is saved in checkpoints, so a resumed
    training keeps its budget. Add it before `StrideMonitor`: the budget then knows how far a
    step leaves the limits, and the projected strides are logged.

    Args:
        example: an input of the network, or a tuple of inputs; only shapes matter.
        budget: up to 100 a fraction of the network's multiply-adds when training first starts,
            above 100 their number per sample. A training that is resumed, from a checkpoint or by
            another ``fit`` of the same network, keeps the number of the first one.
        network: attribute of the `LightningModule` that contains the network; ``""`` for the
            module itself.
        log: name of the cost that is logged at the end of each epoch; None to log nothing. Several
            budgets need different names.
        leaf_modules: as for `convert`.

    Raises:
        ValueError: several budgets of a trainer have the same ``log``.

    >>> trainer = pl.Trainer(callbacks=[BudgetCallback(images, 0.5)])  # doctest: +SKIP
    """

    def __init__(
        self,
        example: Any,
        budget: float = 1.0,
        network: str = "",
        log: str | None = "multiply_adds",
        leaf_modules: Iterable[str | type[nn.Module]] = (),
    ) -> None:
        self.example, self.fraction, self.network, self.name = example, budget, network, log
        self.leaf_modules = as_leaves(leaf_modules)
        self.budget: CostBudget | None = None
        self._saved: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, one for each network."""
        return type(self).__qualname__ + repr({"network": self.network})

    def setup(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str | None = None
    ) -> None:
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        names = [each.name for each in callbacks if isinstance(each, BudgetCallback)]
        if self.name is not None and names.count(self.name) > 1:
            raise ValueError(
                f"several budgets are logged as {self.name!r}, which would average their costs: "
                "give each callback another log="
            )

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        network = pl_module.get_submodule(self.network)
        budget = self._saved.get("multiply_adds", self._earlier_budget(network))
        self.budget = CostBudget(network, self.example, budget, self.leaf_modules)
        if self._saved:
            self.budget.load_state_dict(self._saved)
        self._saved = {}

    def _earlier_budget(self, network: nn.Module) -> float:
        """The budget of an earlier ``fit`` of this network: the fraction is not applied again."""
        if self.budget is None:
            return self.fraction
        known, present = self.budget.cost.layers.values(), stride_layers(network).values()
        return self.budget.multiply_adds if set(known) == set(present) else self.fraction

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *args: Any
    ) -> None:
        if self.budget is not None:
            self.budget.project_()

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Any
    ) -> None:
        if self.budget is not None:
            self.budget.project_gradients_()

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self.budget is not None and self.name is not None:
            pl_module.log(self.name, float(self.budget.cost.value()))

    def state_dict(self) -> dict[str, Any]:
        return self.budget.state_dict() if self.budget is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict
