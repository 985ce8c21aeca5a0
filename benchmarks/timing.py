"""Times of contenders that take turns, so that a drift of the machine affects all alike."""

import gc
import math
import random
import time
from collections.abc import Callable, Hashable, Mapping
from statistics import quantiles
from typing import Any, NamedTuple, TypeVar

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # not a Unix
    getrusage = None

Key = TypeVar("Key", bound=Hashable)
WARM_UP_CALLS = 3
FEWEST_SAMPLES = 3


class Effort(NamedTuple):
    """How long to measure.

    Each contender gets ``repeats`` samples, fewer (but at least three) if they would take more than
    ``budget`` seconds. A sample is as many calls as fill ``sample_seconds``. There are three calls
    to warm up, fewer if they take more than a tenth of the budget.
    """

    repeats: int
    sample_seconds: float = 0.01
    budget: float = 30.0
    seed: int = 0


class Timing(NamedTuple):
    """Median and quartiles over the samples, in seconds a call, and how they were taken."""

    median: float
    lower_quartile: float
    upper_quartile: float
    samples: int
    calls_per_sample: int
    page_faults: float | None


class Sample(NamedTuple):
    """Seconds and page faults a call; NaN where page faults are not counted."""

    seconds: float
    faults: float


class _Turns(NamedTuple):
    calls: int
    samples: int


def measure(
    contenders: Mapping[Key, Callable[[], Any]],
    effort: Effort,
    sample: Callable[[Callable[[], Any], int], Sample] | None = None,
) -> dict[Key, Timing]:
    """Warm up every contender, then let them take turns, in a new random order each round.

    ``sample`` times a number of calls; by default it reads the clock of the CPU.
    """
    sample = sample or cpu_sample
    turns = {key: _plan(call, effort, sample) for key, call in contenders.items()}
    samples: dict[Key, list[Sample]] = {key: [] for key in contenders}
    order = random.Random(effort.seed)
    # Garbage collection takes milliseconds and would be timed with the contender that runs then.
    gc.collect()
    gc.disable()
    try:
        for turn in range(effort.repeats):
            for key in order.sample(list(contenders), len(contenders)):
                if takes_turn(turn, turns[key].samples, effort.repeats):
                    samples[key].append(sample(contenders[key], turns[key].calls))
    finally:
        gc.enable()
    return {key: _summarise(samples[key], turns[key].calls) for key in contenders}


def takes_turn(turn: int, samples: int, repeats: int) -> bool:
    """Whether a contender with ``samples`` turns, spread over ``repeats``, takes this one.

    >>> [turn for turn in range(9) if takes_turn(turn, 3, 9)]
    [2, 5, 8]
    """
    return (turn + 1) * samples // repeats > turn * samples // repeats


def summary_of(seconds: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile.

    >>> summary_of([5.0, 1.0, 3.0, 2.0, 4.0])
    (3.0, 2.0, 4.0)
    """
    if len(seconds) == 1:
        return seconds[0], seconds[0], seconds[0]
    lower, median, upper = quantiles(seconds, n=4, method="inclusive")
    return median, lower, upper


def _plan(
    call: Callable[[], Any], effort: Effort, sample: Callable[[Callable[[], Any], int], Sample]
) -> _Turns:
    spent = 0.0
    for _ in range(WARM_UP_CALLS):
        seconds = sample(call, 1).seconds
        spent += seconds
        if spent > effort.budget / 10:
            break
    calls = max(1, math.ceil(effort.sample_seconds / seconds))
    affordable = max(FEWEST_SAMPLES, int(effort.budget / (calls * seconds)))
    return _Turns(calls, min(effort.repeats, affordable))


def cpu_sample(call: Callable[[], Any], calls: int) -> Sample:
    """Time that many calls by the clock of the CPU."""
    faults, start = _page_faults(), time.perf_counter()
    for _ in range(calls):
        call()
    seconds = time.perf_counter() - start
    return Sample(seconds / calls, (_page_faults() - faults) / calls)


def _page_faults() -> float:
    return math.nan if getrusage is None else getrusage(RUSAGE_SELF).ru_minflt


def _summarise(samples: list[Sample], calls: int) -> Timing:
    # Page faults tell whether new memory was part of what was timed.
    faults = summary_of([sample.faults for sample in samples])[0]
    return Timing(
        *summary_of([sample.seconds for sample in samples]),
        samples=len(samples),
        calls_per_sample=calls,
        page_faults=None if math.isnan(faults) else faults,
    )
