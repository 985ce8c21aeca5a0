"""Strides that move by measured losses: samples go where the loss misses them most for their cost.

The gradient of a stride tells what the gain of the highest frequency of a map is worth to the
weights as they are, on average over its sign. In a trained network that is about zero. What the
network loses without that frequency is not: it is measured here, by running the network with
smaller maps.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import floor, inf, log
from numbers import Real
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from diffstride._arguments import check_counts
from diffstride._processes import has_process_group, process_count
from diffstride.cost.budget import CostBudget
from diffstride.cost.forgotten_calls import ForgottenCall
from diffstride.cost.loss_measurement import NotFiniteError, as_before, run_loss
from diffstride.cost.map_worth import (
    Worth,
    able_to_move,
    at_constant_cost,
    wanted_moves,
    with_prior,
)
from diffstride.cost.rise_measurements import RiseMeasurements
from diffstride.cost.stride_space import Key, Logs, OutputSizes, StrideSpace, by_key
from diffstride.strides import stride_layers

FIRST_MOVE = 0.5  # of the first move, of the logarithm of a map size
REACH_SAMPLES, REACH_SHARE = 1.5, 0.25  # of its map: what is measured near by holds no further
HELD_DECISIONS = 2  # decisions after its growth in which a map is not made smaller
MEASURED_EVERY = 4  # every such step is measured at most
DECISION_POWER = 1.5  # power of the share of the decisions by which the share of the steps grows
PRIOR_SHARE = 0.3  # of the loss: what all maps are worth in a trained network, about
REMEMBERED = 4  # times ``batches``: measurements that count, where no map has changed since


class MeasuredStrides:
    """Moves the strides of a network under a budget by measured losses instead of by gradients.

    At a few decisions during the training, the network runs on some batches as it is and with each
    axis of each map a sixteenth smaller, by one sample at least. Samples then go from maps where a
    multiply-add is worth little to maps where it is worth much, at the cost of the budget::

        log m  <-  log m + a * clip(log(q / p) / log 5 + 0.3 * log(v / c / q) / log 5, -1, 1)

    for a map size ``m`` whose last samples are worth ``v`` and cost ``c`` multiply-adds, with ``v /
    c`` on average ``q`` in its layer and ``p`` in the network. ``v`` is the rise of the loss
    without them, and a prior. Differences that may be chance move nothing. The page "How conversion
    works" has all of it, under "How measured strides move".

    Gradients of the strides are not used, and not computed, so that optimisers leave the strides
    alone, until another `CostBudget` of the network or `CostBudget.attach` has them computed again.
    Strides that are loaded or set otherwise count as a move, and are scaled to the budget. Several
    processes have to compute gradients of all parameters. There `step` sets the strides back to
    those that it wrote last, whatever changed them: load a network before its budget is made.

    Args:
        budget: of the network, not attached to an optimiser. It is never exceeded, but by the runs
            with a smaller map, where pooling costs more than that saves.
        steps: the number of training steps in which strides move, at least 2. Four tenths of the
            training leave the weights time to settle.
        decisions: how many times the strides move, at most; two steps or more lie between them.
        batches: on how many batches before a decision losses are measured, at least 2; before the
            first ones and in short trainings on a quarter of the steps between them. Each costs a
            forward pass for each axis of each layer, and one more.

    Raises:
        TypeError: the budget is not a `CostBudget`.
        ValueError: a number is too small, the budget is attached to an optimiser, or a single
            stride learns, which the budget fixes.

    Warns:
        UserWarning: later, if the network trains and `step` is not called.

    >>> import torch
    >>> from torch import nn
    >>> from diffstride import DiffStride
    >>> net = nn.Sequential(DiffStride(2.0), nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2))
    >>> budget = CostBudget(net, torch.zeros(1, 3, 16, 16))
    >>> strides = MeasuredStrides(budget, steps=4, decisions=1, batches=2)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> inputs = torch.rand(2, 3, 16, 16)
    >>> for _ in range(4):
    ...     loss = lambda: net(inputs).square().mean()
    ...     optimizer.zero_grad()
    ...     loss().backward()
    ...     optimizer.step()
    ...     strides.step(loss)
    >>> budget.cost.value() <= budget.multiply_adds
    True
    """

    def __init__(
        self, budget: CostBudget, steps: float, decisions: int = 16, batches: int = 10
    ) -> None:
        _check(budget, steps, decisions, batches)
        # Averages over processes wait for the gradients of all parameters.
        budget.held.compute_gradients(has_process_group())
        self.budget, self.batches = budget, int(batches)
        self._due = _steps_of_decisions(int(steps), int(decisions))
        self.worth: dict[Key, Worth] = {}
        """What samples were worth at the last decision, by layer and axis: ``v``, and its error.

        Without maps of which less saves nothing, and those that cannot become clearly smaller.
        """
        self._space: StrideSpace = budget.space
        self._measurements = self._new_measurements()
        self._done = 0
        self._grown: dict[Key, int] = {}
        self._sums_at_first: list[float] | None = None
        weights = _learning_weights(budget.model)
        self._watch = ForgottenCall(weights[0], self._explain_forgotten) if weights else None

    def __repr__(self) -> str:
        made, last = bisect_right(self._due, self._done), self._due[-1]
        where = f"step {self._done:,} of {last:,} in which strides move, after {made} of"
        if self._done > last:
            where = f"step {self._done:,}, strides stay since step {last:,}, after all"
        return f"MeasuredStrides({where} {len(self._due)} decisions; {self.budget!r})"

    def _explain_forgotten(self) -> str:
        return (
            "the network trains, but nothing moves its strides: call step(loss) of MeasuredStrides "
            "after each optimizer.step()"
        )

    def step(self, loss: Callable[[], Tensor]) -> None:
        """Count a training step, measure if a decision is near, and move the strides if it is due.

        Call it after each step of the optimiser: between forward and backward pass it would change
        what the backward pass needs. Where several batches accumulate gradients for a step, any of
        them will do.

        Args:
            loss: runs the network on this step's batch, as in training, and returns the loss, or a
                dictionary with it under "loss". It is called without gradients, once at the first
                step and then only near decisions.

        Raises:
            TypeError: the loss is no function, or does not return one number.
            ValueError: the loss is not finite on any batch before a decision, asks for gradients,
                or is the same for all maps, the budgets of several processes differ, or strides
                were fixed by ``requires_grad`` after the budget was made.

        Warns:
            UserWarning: no weight has changed since the first step, at the first decision.
        """
        if not callable(loss):
            raise TypeError(
                f"loss must be a function, but got a {type(loss).__name__}: pass one that runs the "
                "network, as in step(lambda: criterion(model(inputs), labels))"
            )
        _check_not_attached(self.budget)
        self.budget.watch.stop()
        if self._watch is not None:
            self._watch.stop()
        if self._hold():
            self._measurements.prepare()
            self._measurements.start_anew()
        self.budget.check_processes()
        self._done += 1
        if self._done == 1:
            self._sums_at_first = _sums(self.budget.model)
        if self._done > self._due[-1]:
            return
        decision = bisect_left(self._due, self._done)
        before, due = [0, *self._due][decision : decision + 2]
        first = due + 1 - max(2, min(self.batches, (due - before) // MEASURED_EVERY))
        if self._done == first:
            self._measurements.prepare()
        if self._done >= first:
            self._measurements.measure(loss)
        elif self._done == 1:  # a loss that cannot be measured is told at once
            with as_before(self.budget.model, loss) as seed, suppress(NotFiniteError):
                run_loss(loss, seed)
        if self._done == due:
            self.budget.held.check_learn()
            self._decide(decision)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs, the state of the budget included."""
        return {
            "budget": self.budget.state_dict(),
            "schedule": (self._due, self.batches),
            "done": self._done,
            **self._measurements.state_dict(),
            "grown": dict(self._grown),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, strides included, by the steps with which it began.

        Raises:
            ValueError: it is that of another network, or of a budget alone.
        """
        if "schedule" not in state:
            raise ValueError(
                f"the state has {', '.join(state)}, and is not of MeasuredStrides: pass what its "
                "state_dict() returned, or load that of a budget into the CostBudget"
            )
        self.budget.load_state_dict(state["budget"])
        self.continue_(state)

    def continue_(self, state: dict[str, Any]) -> None:
        """Continue from a saved state with the strides as they are.

        What was measured at other strides is left out, and all that was with several processes: a
        checkpoint has the measurements of one of them.

        Raises:
            ValueError: it is that of another network.
        """
        self.budget.check_state(state["budget"])
        self._due, self.batches = state["schedule"]
        self._done, self._grown = state["done"], dict(state["grown"])
        self._measurements = self._new_measurements()
        self._measurements.load_state_dict(state)
        written: Logs = state["budget"]["written"]
        same_strides = {name: [*each] for name, each in written.items()} == self.budget.in_use
        if process_count() > 1 or not same_strides:
            self._measurements.start_anew()

    def _hold(self) -> bool:
        """Undo what an optimiser did to the strides, or project those that were loaded or set.

        Where no gradients of the strides are computed, an optimiser leaves them alone. Nothing is
        read from an accelerator then, unless strides have changed.

        Returns:
            Whether they were projected.
        """
        held = self.budget.held
        if held.have_gradients:  # an optimiser moves them, and nothing tells it from a load
            held.write_(held.in_use)
            return False
        if held.are_replaced():
            self.budget.project_()
            return True
        return False

    def _new_measurements(self) -> RiseMeasurements:
        return RiseMeasurements(self.budget, self.batches, REMEMBERED * self.batches)

    def _decide(self, decision: int) -> None:
        """Move the strides by what was measured, unless errors in the loss prevented that."""
        measured = self._measurements.gather()
        if measured is None:
            return
        self._check_weights_change()
        if measured.is_constant and not self.worth:
            raise ValueError(
                f"the loss stays the same with any of {len(measured.worth)} maps made smaller: "
                "pass step() a loss of the network that the budget was made for, on the same "
                "device, and no accuracy, which changes by whole samples"
            )
        trained = PRIOR_SHARE * max(measured.loss, 0.0) / self.budget.cost.value()
        self.worth = with_prior(measured.worth, trained)
        held = {key for key, grown in self._grown.items() if decision - grown <= HELD_DECISIONS}
        before = self._sizes()
        scale = FIRST_MOVE * (1 - decision / len(self._due)) ** 0.5
        largest = self._space.at_lowest(self.budget.in_use)
        able = able_to_move(self.worth, largest)
        moves = at_constant_cost(wanted_moves(able, held, scale), able, held)
        tried = self._tried_moves(before.keys() - largest) if 2 * decision < len(self._due) else {}
        self._move(moves | self._following(moves) | tried)
        if decision + 1 < len(self._due):
            self._limit_growth(before)
        sizes = self._sizes()
        self._grown |= {key: decision for key, size in sizes.items() if size > before[key]}
        if sizes != before:
            self._measurements.start_anew()

    def _check_weights_change(self) -> None:
        """Warn, at the first decision, of weights that no optimiser trains."""
        before, self._sums_at_first = self._sums_at_first, None
        if before and before == _sums(self.budget.model):
            warn(
                f"no weight of this {type(self.budget.model).__name__} has changed in "
                f"{self._done:,} steps: make the optimizer of its parameters, after convert, which "
                "returns a copy, and call step(loss) after each optimizer.step()",
                stacklevel=4,
            )

    def _following(self, moves: Mapping[Key, float]) -> dict[Key, float]:
        """Maps that should grow and cannot by themselves grow with the maps before them."""
        follow: dict[Key, float] = {}
        for key in self.worth.keys() - moves.keys():
            before = self._space.maps_before.get(key)
            while before in self.worth and before not in moves:
                before = self._space.maps_before.get(before)
            follow[key] = max(0.0, moves.get(before, 0.0)) if before else 0.0
        return follow

    def _tried_moves(self, growable: set[Key]) -> dict[Key, float]:
        """Twice the size, once, for maps that cannot be made smaller to measure their worth."""
        return dict.fromkeys(growable - self.worth.keys() - self._grown.keys(), log(2.0))

    def _sizes(self) -> OutputSizes:
        return self._space.fit(self.budget.in_use).sizes

    def _move(self, moves: Mapping[Key, float]) -> None:
        """Move the logarithms of the map sizes, and meet the budget.

        What strides moved before without a change of the size counts if it points the same way.
        """
        in_use, wanted = by_key(self.budget.in_use), by_key(self.budget.wanted)
        maps_before = self._space.maps_before

        def ahead(key: Key) -> float:
            """How far the size wanted lies above the present one, which is a whole number."""
            own = in_use[key] - wanted[key]
            return own + (ahead(maps_before[key]) if key in maps_before else 0.0)

        steps = {}
        for key, size in self._sizes().items():
            move, earlier = moves.get(key, 0.0), ahead(key)
            along = earlier if earlier * move > 0 else 0.0
            steps[key] = _within_reach(along + move, size)

        target: Logs = {}
        for key, at in in_use.items():
            of_map_before = steps[maps_before[key]] if key in maps_before else 0.0
            target.setdefault(key[0], []).append(max(0.0, at - steps[key] + of_map_before))
        self.budget.aim_(target, stay=False)

    def _limit_growth(self, before: OutputSizes) -> None:
        """Make maps smaller that the budget has made far larger, as where pooling became free.

        A part of the budget then stays unused until the next decision, so the last has no limit.
        """
        most = {key: size + max(2, floor(REACH_SHARE * size)) for key, size in before.items()}
        far = {key: most[key] for key, size in self._sizes().items() if size > most[key]}
        if far:
            fit = self._space.at_sizes(self.budget.in_use, self._sizes() | far)
            if fit and fit.cost <= self.budget.multiply_adds:
                self.budget.held.write_(fit.logs)
            elif fit:  # pooling one sample costs more than it saves
                self.budget.aim_(fit.logs, stay=False)


def _steps_of_decisions(steps: int, decisions: int) -> list[int]:
    """After which steps strides move: often at first, the last time after the last step.

    >>> _steps_of_decisions(100, 4), _steps_of_decisions(5, 4)
    ([12, 35, 65, 100], [2, 5])
    """
    due: list[int] = []
    for number in range(1, decisions + 1):
        at = round(steps * (number / decisions) ** DECISION_POWER)
        if at - (due[-1] if due else 0) >= 2:
            due.append(at)
    return [*due[:-1], steps]


def _within_reach(step: float, size: int) -> float:
    """A step of the logarithm of a map size, within what one decision may change.

    >>> from math import exp
    >>> [round(3 * exp(_within_reach(step, 3)), 1) for step in (-2, 0, 2)]
    [1.5, 3.0, 4.5]
    >>> [round(16 * exp(_within_reach(step, 16)), 1) for step in (-2, 0, 2)]
    [12.0, 16.0, 20.0]
    """
    reach = max(REACH_SAMPLES / size, REACH_SHARE)
    return min(max(step, log(max(1 - reach, 0.5 / size))), log(1 + reach))


def _learning_weights(model: nn.Module) -> list[nn.Parameter]:
    """The real weights that learn, without strides."""
    strides = {id(layer.strides) for layer in stride_layers(model).values()}
    learning = [x for x in model.parameters() if x.requires_grad and id(x) not in strides]
    return [x for x in learning if x.is_floating_point()]


def _sums(model: nn.Module) -> list[float]:
    """The sum of each weight that learns; fused optimisers leave no other sign."""
    return [x.detach().sum(dtype=torch.float32).item() for x in _learning_weights(model)]


def _check(budget: Any, steps: Any, decisions: Any, batches: Any) -> None:
    if not isinstance(budget, CostBudget):
        raise TypeError(
            f"MeasuredStrides needs a CostBudget, but got a {type(budget).__name__}: pass "
            "CostBudget(model, images, 'before')"
        )
    _check_not_attached(budget)
    check_counts(2, batches=batches)
    check_counts(decisions=decisions)
    if not (isinstance(steps, Real) and 2 <= float(steps) < inf):
        got = f"{steps}" if isinstance(steps, Real) else f"a {type(steps).__name__}"
        raise ValueError(
            "steps must be the number of training steps in which strides move, at least 2, but got "
            f"{got}: four tenths of all are usual, as in 0.4 * epochs * len(loader)"
        )
    if sum(map(len, budget.wanted.values())) < 2:
        raise ValueError(
            f"the budget holds {next(iter(budget.wanted))!r} alone, with one stride, which the "
            "budget fixes: MeasuredStrides needs two strides that learn, or more, to share it out"
        )


def _check_not_attached(budget: CostBudget) -> None:
    if budget.is_attached:
        raise ValueError(
            "the budget is attached to an optimizer, which moves the strides by their gradients: "
            "use a CostBudget without attach, or call remove() of what it returned"
        )
