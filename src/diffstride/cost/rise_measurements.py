"""By how much the loss of a network rises if one of its maps is smaller."""

from collections.abc import Callable, Mapping
from math import isfinite, nan
from statistics import mean, stdev
from typing import Any, NamedTuple

from torch import Tensor

from diffstride.cost.budget import CostBudget
from diffstride.cost.loss_measurement import NotFiniteError, as_before, of_all_processes, run_loss
from diffstride.cost.map_worth import Worth, few_samples
from diffstride.cost.smaller_maps import Smaller, smaller_maps
from diffstride.cost.stride_space import Key

LOSS = "loss", 0  # the key of losses beside those of rises
DISTURBANCE = 5.0  # of weights by another map size, see `undisturbed`


class Measured(NamedTuple):
    """What was measured on all batches of all processes.

    Args:
        worth: what samples are worth, of each axis, by the rises alone.
        loss: the mean loss of the network as it is.
        is_constant: whether the loss is the same for all maps, and not 0.
    """

    worth: dict[Key, Worth]
    loss: float
    is_constant: bool


class RiseMeasurements:
    """Losses of a network on some batches, as it is and with each axis of its maps smaller.

    Args:
        budget: of the network.
        batches: on how many batches a decision is based.
        remembered: on how many at most, where earlier ones count as well.

    Attributes:
        rises: by how much the loss rose on each batch, for each axis.
    """

    def __init__(self, budget: CostBudget, batches: int, remembered: int) -> None:
        self._budget, self._batches, self._remembered = budget, batches, remembered
        self._smaller: dict[Key, Smaller] = {}
        self.rises: dict[Key, list[float]] = {}
        self._losses: list[float] = []  # of the network as it is, one for each rise
        self._count = 0  # of all measurements: where nothing else draws, seeds would be the same
        self._not_finite: NotFiniteError | None = None

    def prepare(self) -> None:
        """Find the smaller maps; what was measured of the same ones stays."""
        before = self._changes()
        self._smaller = smaller_maps(self._budget.space, self._budget.in_use)
        if self._changes() != before:
            self.start_anew()

    def _changes(self) -> dict[Key, float]:
        """By how much the logarithm of each map size changes in its measurement."""
        return {key: smaller.step for key, smaller in self._smaller.items()}

    def start_anew(self) -> None:
        """Forget what was measured; `prepare` finds the smaller maps where these have changed."""
        self.rises, self._losses = {key: [] for key in self._smaller}, []

    def measure(self, loss: Callable[[], Tensor]) -> None:
        """Run the network as it is and with each of the smaller maps."""
        present, found = self._budget.in_use, {}
        try:
            with as_before(self._budget.model, loss) as seed:
                seed += self._count
                now = run_loss(loss, seed)
                for (name, i), smaller in self._smaller.items():
                    self._budget.held.write_(smaller.logs)
                    less = f", measured with axis {i} of {name!r} smaller,"
                    found[name, i] = run_loss(loss, seed, less) - now
        except NotFiniteError as error:  # of one batch, as in half precision now and then
            self._not_finite, now, found = error, nan, dict.fromkeys(self._smaller, nan)
        finally:
            self._budget.held.write_(present)
        self._count += 1
        for key, rise in found.items():
            self.rises[key] = [*self.rises[key], rise][-self._remembered :]
        self._losses = [*self._losses, now][-self._remembered :]

    def gather(self) -> Measured | None:
        """What all processes have measured; None if that is too little to decide anything.

        Raises:
            NotFiniteError: the loss was not finite on any of the last batches.
        """
        device = next(self._budget.model.parameters()).device
        values = of_all_processes({**self.rises, LOSS: self._losses}, device)
        values = {key: list(filter(isfinite, each)) for key, each in values.items()}
        if self._not_finite and not any(map(isfinite, self._losses[-self._batches :])):
            raise self._not_finite
        if any(len(each) < 2 for each in values.values()):
            return None
        losses = values.pop(LOSS)
        is_constant = bool(values) and any(losses) and not any(map(any, values.values()))
        worth = {key: _worth(each, self._smaller[key]) for key, each in values.items()}
        return Measured(worth, mean(losses), is_constant)

    def state_dict(self) -> dict[str, Any]:
        """The measurements of this process."""
        return {
            "rises": dict(self.rises),
            "steps": self._changes(),
            "losses": list(self._losses),
            "count": self._count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; measurements of other maps are left out."""
        self.rises = {key: list(values) for key, values in state["rises"].items()}
        self._losses, self._count = list(state["losses"]), state["count"]
        measured = {key: state["steps"].get(key) for key in self.rises}
        self._smaller = smaller_maps(self._budget.space, self._budget.in_use) if self.rises else {}
        if measured != self._changes() or not self._losses:
            self.start_anew()


def undisturbed(rise: float, change: float) -> float:
    """What the loss rises by for a change of 1 of the logarithm of a map size.

    ``rise / (d (1 + 5 d))`` for a rise measured at a change ``d``: another map size disturbs
    weights that have not learnt it, by the square of its change. Small maps would seem to be worth
    too much otherwise, as one sample is a large change there.

    >>> [round(undisturbed(rise, change), 2) for rise, change in ((0.06, 0.1), (0.6, 0.4))]
    [0.4, 0.5]
    """
    return rise / (change * (1 + DISTURBANCE * change))


def _worth(rises: list[float], smaller: Smaller) -> Worth:
    error = few_samples(len(rises)) * stdev(rises) / len(rises) ** 0.5
    return Worth(
        undisturbed(mean(rises), smaller.step),
        undisturbed(error, smaller.step),
        smaller.cost,
        smaller.growth,
        smaller.weight,
    )
