"""Warns of calls that a training forgets: those that hold a budget, and those that move strides."""

from collections.abc import Callable, Sequence
from typing import Any
from warnings import warn
from weakref import WeakMethod

from torch import Tensor, nn

from diffstride.cost.multiply_adds import on_host

WATCHED = 20  # backward passes: reading strides from an accelerator takes time
MOST_WITHOUT_CALL = 100  # backward passes: several may accumulate gradients for a step


class ForgottenCall:
    """Watches the backward passes of a parameter until `stop` is called, and warns once.

    Args:
        parameter: is watched.
        explain: method that gives the text of the warning; if its object is gone, as where another
            took its place, nothing warns.
        passes: how many backward passes are watched; at the last one the call counts as forgotten.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        explain: Callable[[], str],
        passes: int = MOST_WITHOUT_CALL,
    ) -> None:
        self._explain, self._left = WeakMethod(explain), passes
        self._handle: Any = None
        if parameter.requires_grad:  # others have no gradients to watch
            self._handle = parameter.register_post_accumulate_grad_hook(self._look)

    def __getstate__(self) -> dict[str, Any]:
        return {"_handle": None}  # a copy watches nothing

    def stop(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _is_forgotten(self) -> bool:
        """Whether the call has been forgotten, after a backward pass."""
        return not self._left

    def _look(self, _: Tensor) -> None:
        explain = self._explain()
        if explain is None:
            self.stop()
            return
        self._left -= 1
        is_forgotten = self._is_forgotten()
        if is_forgotten or not self._left:
            self.stop()
        if is_forgotten:
            warn(explain(), stacklevel=2)


class ForgottenProjection(ForgottenCall):
    """Warns if an optimiser moves strides under a budget that nobody holds.

    The first backward passes read the strides. If they moved twice, the budget is forgotten. One
    move may be a checkpoint that was loaded.

    Args:
        strides: the parameters.
        explain: as for `ForgottenCall`.
    """

    def __init__(self, strides: Sequence[nn.Parameter], explain: Callable[[], str]) -> None:
        self._strides, self._seen = strides, [on_host(strides).tolist()]
        super().__init__(strides[0], explain, WATCHED)

    def _is_forgotten(self) -> bool:
        now = on_host([each.detach() for each in self._strides]).tolist()
        if now != self._seen[-1]:
            self._seen.append(now)
        return len(self._seen) > 2
