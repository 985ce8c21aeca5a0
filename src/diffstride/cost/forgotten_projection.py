"""Warns when an optimiser moves strides under a budget that nobody holds."""

from collections.abc import Callable, Sequence
from typing import Any
from warnings import warn
from weakref import WeakMethod

from torch import Tensor, nn

from diffstride.cost.multiply_adds import on_host

WATCHED = 20  # backward passes: reading strides from an accelerator takes time


class ForgottenProjection:
    """Watches the first backward passes of strides until `stop` is called.

    Each reads the strides. If they moved twice and nothing has held the budget meanwhile, a warning
    says so once. One move may be a checkpoint that was loaded.

    Args:
        strides: the parameters.
        explain: method of a budget that gives the text of the warning; a budget that is gone, as
            where another took its place, warns no longer.
    """

    def __init__(self, strides: Sequence[nn.Parameter], explain: Callable[[], str]) -> None:
        self._strides, self._explain = strides, WeakMethod(explain)
        self._seen = [on_host(strides).tolist()]
        self._left = WATCHED
        self._handle: Any = strides[0].register_post_accumulate_grad_hook(self._look)

    def __getstate__(self) -> dict[str, Any]:
        return {"_handle": None}  # a copy watches nothing

    def stop(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _look(self, _: Tensor) -> None:
        explain = self._explain()
        if explain is None:
            self.stop()
            return
        now = on_host([each.detach() for each in self._strides]).tolist()
        if now != self._seen[-1]:
            self._seen.append(now)
        self._left -= 1
        if len(self._seen) > 2:
            warn(explain(), stacklevel=2)
        if len(self._seen) > 2 or not self._left:
            self.stop()
