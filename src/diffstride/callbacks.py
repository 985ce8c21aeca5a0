"""Lightning callbacks for networks with learnable strides."""

from collections.abc import Callable, Iterable
from functools import partial
from inspect import signature
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from diffstride._extras import require
from diffstride.cost.budget import CostBudget
from diffstride.cost.budget_amount import check_amount
from diffstride.cost.measured_strides import MeasuredStrides
from diffstride.graph.leaf_modules import as_leaves
from diffstride.strides import project_strides, stride_layers, stride_scalars

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
    except ImportError:
        require("lightning", "diffstride.callbacks")
        from pytorch_lightning import Callback, LightningModule, Trainer


class _NetworkCallback(Callback):
    """Base of callbacks that act on a part of a module, by its name ``network``."""

    network: str

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._find_network(pl_module)

    def _find_network(self, pl_module: LightningModule) -> nn.Module:
        """The part of a module that the callback names.

        It is first called when a fit starts. Before, in `setup`, a module need not have its network
        yet: Lightning calls the ``setup`` and ``configure_model`` of modules after that of
        callbacks.

        Raises:
            ValueError: there is no such part; lists those that there are.
        """
        found: nn.Module = pl_module
        place = type(pl_module).__name__
        for name in self.network.split(".") if self.network else ():
            parts = {each: part for each, part in found._modules.items() if part is not None}
            if name not in parts:
                names = ", ".join(map(repr, parts)) or "none"
                raise ValueError(
                    f"{type(self).__name__}(network={self.network!r}): {place} has no module "
                    f"{name!r}, its modules are {names}: pass the name of the network, or '' for "
                    "all"
                )
            found, place = parts[name], f"{place}.{name}"
        return found


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with two arguments, as far as Python knows.

    >>> _takes_two(lambda module, batch: 0), _takes_two(lambda batch: 0), _takes_two(max)
    (True, False, True)
    """
    try:
        signature(function, follow_wrapped=False).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # builtins have no signature
        return True
    return True


def _training_steps(trainer: Trainer, what: str) -> float:
    """The number of optimiser steps of a training, which ``what`` needs.

    Raises:
        ValueError: the training has no end.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError(
            f"{what} needs the number of training steps, but the training has no end: give the "
            "trainer max_epochs or max_steps"
        )
    return steps


def _part_with_strides(module: nn.Module) -> str:
    """The only direct part of a module that has learnable strides; empty if there are several."""
    names = {name.partition(".")[0] for name in stride_layers(module)} - {""}
    return names.pop() if len(names) == 1 else ""


def _overlap(network: str, other: str) -> bool:
    """Whether one of two parts of a module, by their names, contains the other.

    >>> _overlap("", "body"), _overlap("net.body", "net"), _overlap("body", "bodywork")
    (True, True, False)
    """
    parts, others = (name.split(".") if name else [] for name in (network, other))
    shared = min(len(parts), len(others))
    return parts[:shared] == others[:shared]


class StrideMonitor(_NetworkCallback):
    """Projects learnable strides onto their limits after each step, and logs them.

    All loggers of the trainer receive the strides as ``stride/LAYER/AXIS``, before the first step
    and then every ``log_every_n_steps``, by the number of optimiser steps. In a plain loop call
    `diffstride.project_strides` and `diffstride.stride_scalars`.

    Args:
        network: attribute of the `LightningModule` that contains the network, not repeated in the
            logged names, such as ``"network"`` or ``"network.body"``; ``""`` for the module itself.

    Raises:
        ValueError: when a fit starts, if there is no such attribute.

    >>> trainer = Trainer(callbacks=[StrideMonitor()])  # doctest: +SKIP
    """

    def __init__(self, network: str = "") -> None:
        self.network = network

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        project_strides(pl_module)
        self._logged = -1
        if trainer.global_step == 0:
            self._log(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        project_strides(pl_module)
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every and trainer.global_step % every == 0:
            self._log(trainer, pl_module)

    # Callbacks that average weights swap them through `.data`, which layers on an accelerator do
    # not notice. Projecting makes them read their strides again.

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            project_strides(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        project_strides(pl_module)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # With accumulated gradients several batches belong to one step.
        if not trainer.loggers or not trainer.is_global_zero or trainer.global_step == self._logged:
            return
        self._logged = trainer.global_step
        scalars = stride_scalars(self._find_network(pl_module))
        for logger in trainer.loggers if scalars else ():
            logger.log_metrics(scalars, step=trainer.global_step)


class StridePhase(_NetworkCallback):
    """Trains learnable strides in one phase of the training, and keeps them fixed before and after.

    Outside the phase it sets the gradients of the strides to None before each optimiser step.

    Args:
        start: share of the training steps after which strides start to learn, from 0 to 1, of the
            steps given by the trainer's ``max_epochs`` or ``max_steps``.
        stop: share after which they stop to learn, from ``start`` to 1.
        network: as for `StrideMonitor`.

    Raises:
        ValueError: a share is out of its range, the training has no end or several optimisers, or
            the module has no such network.

    >>> trainer = Trainer(callbacks=[StridePhase(0.1, 0.6)])  # doctest: +SKIP
    """

    def __init__(self, start: float = 0.0, stop: float = 1.0, network: str = "") -> None:
        are_numbers = isinstance(start, Real) and isinstance(stop, Real)
        if not are_numbers or not 0 <= start <= stop <= 1:
            raise ValueError(
                f"StridePhase needs shares 0 <= start <= stop <= 1, but got {start!r} and {stop!r}"
            )
        self.start, self.stop, self.network = start, stop, network

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = _training_steps(trainer, f"StridePhase({self.start}, {self.stop})")
        if len(trainer.optimizers) > 1:
            raise ValueError(
                f"StridePhase({self.start}, {self.stop}) needs one optimiser, but the training has "
                f"{len(trainer.optimizers)}: set the gradients of the strides to None in the "
                "LightningModule"
            )
        self.first, self.last = self.start * steps, self.stop * steps

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if self.first <= trainer.global_step < self.last:
            return
        for layer in stride_layers(self._find_network(pl_module)).values():
            parameter: Any = layer.strides
            parameter.grad = None  # optimisers skip None, but apply decay and momentum to zeros


class BudgetCallback(_NetworkCallback):
    """Keeps the multiply-adds of a network at a budget with `diffstride.CostBudget`.

    It projects the strides after each step, or moves them by `diffstride.MeasuredStrides`, and
    saves its state in checkpoints. Add it before `StrideMonitor`, which clamps strides to their
    limits and logs them: the budget has to see the steps unclamped, and the log the projected
    strides.

    Args:
        example: an input of the network, or a tuple of inputs; only shapes matter.
        budget: ``"before"`` for the cost before `convert`; or a number, up to 100 a fraction of the
            network's multiply-adds when training first starts, above 100 their number per sample.
            Training that resumes, from a checkpoint or by another ``fit`` of the same network,
            keeps the number of the first start.
        network: as for `StrideMonitor`.
        log: name of the cost that is logged at the end of each epoch; None to log nothing.
        leaf_modules: as for `convert`.
        loss: moves the strides by measured losses instead of by their gradients: a function of the
            `LightningModule` and a batch that returns the loss, as in ``training_step``.
        moving: share of the training steps in which strides move by ``loss``, above 0 to 1.
            Training that resumes continues with the steps of the first start.

    Raises:
        TypeError: ``loss`` is no function of two arguments.
        ValueError: ``budget`` or ``moving`` is out of its range, several budgets of a trainer have
            the same ``log``, or the module has no such network; with ``loss``, if the training has
            no end or a `StridePhase` of the network.

    >>> trainer = Trainer(callbacks=[BudgetCallback(images, 0.5)])  # doctest: +SKIP
    """

    def __init__(
        self,
        example: Any,
        budget: float | Literal["before"] = 1.0,
        network: str = "",
        log: str | None = "multiply_adds",
        leaf_modules: Iterable[str | type[nn.Module]] = (),
        loss: Callable[[Any, Any], Tensor] | None = None,
        moving: float = 0.4,
    ) -> None:
        check_amount("budget", budget)
        if not (isinstance(moving, Real) and 0 < moving <= 1):
            raise ValueError(f"moving must be a share above 0, up to 1, but got {moving!r}")
        if not (loss is None or callable(loss)):
            raise TypeError(
                f"loss must be a function of the LightningModule and a batch, but got {loss!r}: "
                "pass one such as lambda module, batch: module.loss(batch)"
            )
        if loss is not None and not _takes_two(loss):
            raise TypeError(
                "loss is called with the LightningModule and a batch, but takes "
                f"{signature(loss, follow_wrapped=False)}: pass a function such as lambda module, "
                "batch: module.loss(batch)"
            )
        self.loss, self.moving = loss, moving
        self.example, self.amount, self.network, self.log_name = example, budget, network, log
        self.leaf_modules = as_leaves(leaf_modules)
        self.budget: CostBudget | None = None
        self.measured: MeasuredStrides | None = None
        self._step = 0
        self._saved: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, one for each network."""
        return type(self).__qualname__ + repr({"network": self.network})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        names = [each.log_name for each in callbacks if isinstance(each, BudgetCallback)]
        if self.log_name is not None and names.count(self.log_name) > 1:
            raise ValueError(
                f"several budgets log their cost as {self.log_name!r}: give each BudgetCallback "
                "another log="
            )
        phases = [each.network for each in callbacks if isinstance(each, StridePhase)]
        if self.loss is not None and any(_overlap(self.network, each) for each in phases):
            raise ValueError(
                "StridePhase is for strides that learn by their gradients, but "
                "BudgetCallback(loss=...) moves them by measured losses: leave StridePhase out, "
                "and set moving, the share of the steps in which strides move"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network = self._find_network(pl_module)
        earlier = self._saved or self._state_of_earlier_fit(network)
        budget = earlier.get("multiply_adds", self.amount)
        try:
            self.budget = CostBudget(network, self.example, budget, self.leaf_modules)
        except ValueError as error:
            if not self.network and (part := _part_with_strides(pl_module)):
                raise ValueError(
                    f"pass network={part!r} to BudgetCallback, the part of this "
                    f"{type(pl_module).__name__} whose strides learn: without it the callback "
                    f"takes the whole module, and {error}"
                ) from error
            raise
        if self._saved:
            self.budget.load_state_dict(self._saved)
        if self.loss is not None:
            steps = self.moving * _training_steps(trainer, "BudgetCallback(loss=...)")
            self.measured = MeasuredStrides(self.budget, max(2, steps))
            if "measured" in earlier:
                self.measured.continue_(earlier["measured"])
            self._step = trainer.global_step
        self._saved = {}

    def _state_of_earlier_fit(self, network: nn.Module) -> dict[str, Any]:
        """The state after an earlier ``fit`` of this network; empty if there was none."""
        if self.budget is None:
            return {}
        known, present = self.budget.cost.layers.values(), stride_layers(network).values()
        return self.state_dict() if set(known) == set(present) else {}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any = None,
        batch: Any = None,
        batch_idx: int = 0,
    ) -> None:
        if self.measured is not None and self.loss is not None:
            if trainer.global_step != self._step:  # several batches may make one step
                self._step = trainer.global_step
                with trainer.precision_plugin.forward_context():
                    self.measured.step(partial(self.loss, pl_module, batch))
        elif self.budget is not None:
            self.budget.project_()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if self.budget is not None and self.measured is None:
            self.budget.project_gradients_()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.budget is not None and self.log_name is not None:
            pl_module.log(self.log_name, float(self.budget.cost.value()))

    def __repr__(self) -> str:
        held = self.measured or self.budget
        return super().__repr__() if held is None else f"BudgetCallback({held!r})"

    def state_dict(self) -> dict[str, Any]:
        if self._saved or self.budget is None:  # loaded, and no step taken yet
            return self._saved
        measured = {} if self.measured is None else {"measured": self.measured.state_dict()}
        return self.budget.state_dict() | measured

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict
