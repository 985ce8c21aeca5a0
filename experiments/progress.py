"""How long the runs of a grid have taken, and how long the others will take."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass
class Progress:
    """Estimates the time left from the runs that were finished since the first call.

    Runs that other processes finish meanwhile count, too.

    Args:
        work: the work of each run by name, in any unit, such as epochs.
    """

    work: Mapping[str, float]
    _start: float | None = field(default=None, init=False)
    _missing: frozenset[str] = field(default=frozenset(), init=False)

    def describe(self, missing: Collection[str], failed: Collection[str] = ()) -> str:
        """The time elapsed and left, before the next of the runs that are missing.

        Args:
            missing: names of all runs without results.
            failed: those of them that have failed and are not tried again.

        Returns:
            Text such as ``" (0:10:00 elapsed, about 0:20:00 left)"``; none at the first call, and
            no estimate until a run is finished.
        """
        now = time.monotonic()
        if self._start is None:
            self._start, self._missing = now, frozenset(missing)
            return ""
        elapsed = now - self._start
        finished = self._sum(self._missing.difference(missing))
        if not finished:
            return f" ({_duration(elapsed)} elapsed)"
        left = elapsed * self._sum(set(missing).difference(failed)) / finished
        return f" ({_duration(elapsed)} elapsed, about {_duration(left)} left)"

    def _sum(self, names: Collection[str]) -> float:
        return sum(self.work[name] for name in names)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
