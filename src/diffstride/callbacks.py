"""Lightning callbacks for networks with learnable strides, for anybody's own training."""

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
    """Keeps learnable strides within their limits after each step, and logs them.

    The strides go to whatever loggers the trainer has, as ``stride/LAYER/AXIS``, once before the
    first step and then every ``log_every_n_steps`` of the trainer; ``step`` counts the steps of the
    optimiser that led to them. It needs nothing of the `LightningModule` but the layers inside.

    In a plain loop these two lines do the same::

        optimizer.step()
        project_strides(model)  # from diffstride.callbacks
        print(stride_scalars(model))

    Arguments:
        network: attribute of the `LightningModule` that holds the network, left out of the names;
            ``""`` names layers from the `LightningModule` on, those of several networks, too.

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

    # Weights that are swapped for their averages change behind the back of the layers, which on an
    # accelerator would go on with the strides that they have read.

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
        # Batches whose gradients are accumulated end with the same step.
        if not trainer.loggers or not trainer.is_global_zero or trainer.global_step == self._logged:
            return
        self._logged = trainer.global_step
        scalars = stride_scalars(pl_module.get_submodule(self.network))
        for logger in trainer.loggers if scalars else ():
            logger.log_metrics(scalars, step=trainer.global_step)


class StridePhase(pl.Callback):
    """Has learnable strides learn in one phase of the training alone.

    The gradients of the strides are dropped before each step of the optimiser outside the phase.
    Before it kernels get to know their maps; after it they learn on maps that stay as they are.

    Arguments:
        start: share of the training's steps after which strides begin to learn, from 0 to 1.
        stop: the same after which they stay, from ``start`` to 1. All steps are those of the
            trainer's ``max_epochs`` or ``max_steps``, wherever training stops.
        network: attribute of the `LightningModule` that holds the network; ``""`` for itself.

    Raises:
        ValueError: a share is out of its range; training starts without an end, or with several
            optimisers.

    >>> trainer = pl.Trainer(callbacks=[StridePhase(0.1, 0.6)])  # doctest: +SKIP
    """

    def __init__(self, start: float = 0.0, stop: float = 1.0, network: str = "") -> None:
        are_numbers = isinstance(start, Real) and isinstance(stop, Real)
        if not are_numbers or not 0 <= start <= stop <= 1:
            raise ValueError(
                f"a phase needs shares 0 <= start <= stop <= 1, but got {start!r} and {stop!r}"
            )
        self.start, self.stop, self.network = start, stop, network

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                f"StridePhase({self.start}, {self.stop}) are shares of a training without end: "
                "give the trainer max_epochs or max_steps"
            )
        if len(trainer.optimizers) > 1:
            raise ValueError(
                f"StridePhase({self.start}, {self.stop}) counts the steps of one optimiser, but "
                f"this training has {len(trainer.optimizers)}: drop the gradients of the strides "
                "in the module itself"
            )
        self.first, self.last = self.start * steps, self.stop * steps

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Any
    ) -> None:
        if self.first <= trainer.global_step < self.last:
            return
        for layer in stride_layers(pl_module.get_submodule(self.network)).values():
            parameter: Any = layer.strides
            parameter.grad = None  # not zero: no decay, and momentum stays as it is


class BudgetCallback(pl.Callback):
    """Holds the network's multiply-adds to a budget after each step: `diffstride.CostBudget`.

    The state is saved with the trainer's checkpoints, so that a resumed training keeps its budget.
    Add it before `StrideMonitor`: that one then logs the strides in use, and the budget sees by how
    much a step would have left the limits.

    Arguments:
        example: an input of the network, or a tuple of inputs; only shapes matter.
        budget: up to 100 a fraction of the multiply-adds when training first starts, above that
            their number for one sample. A training that goes on, from a checkpoint or by another
            ``fit`` of the same network, keeps what the first came to.
        network: attribute of the `LightningModule` that holds the network; ``""`` for itself.
        log: name under which the cost is logged at the end of each epoch; None for not at all.
            Of several such callbacks each needs one of its own.
        leaf_modules: as for `convert`.

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
                "give each a name of its own by log="
            )

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        network = pl_module.get_submodule(self.network)
        budget = self._saved.get("multiply_adds", self._spent_before(network))
        self.budget = CostBudget(network, self.example, budget, self.leaf_modules)
        if self._saved:
            self.budget.load_state_dict(self._saved)
        self._saved = {}

    def _spent_before(self, network: nn.Module) -> float:
        """The budget of an earlier training of the same network: no fraction is taken twice."""
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
