"""The picture of a search: the accuracy of every guess, and learned strides among them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from diffstride._picture_style import COLOURS, DPI, INK, WIDTH, styled
from experiments.averages import Entry, is_guess
from experiments.groups import POOLINGS
from experiments.labels import label_right

GOLDEN_RATIO = 0.618  # spreads points that follow each other


class Learned(NamedTuple):
    """Learned strides: where they started, mean accuracy in percent and its spread over seeds."""

    start: str
    accuracy: float
    spread: float | None


class Strip(NamedTuple):
    """A panel: the accuracy of each guess of a data set, sorted, and the learned strides."""

    dataset: str
    guesses: list[float]
    learned: list[Learned]

    @property
    def upper_quartile(self) -> float:
        """The accuracy that a quarter of the guesses exceed (the 75th percentile).

        >>> Strip("", [80.0, 81.0, 82.0, 83.0, 84.0], []).upper_quartile
        83.0
        """
        if len(self.guesses) == 1:
            return self.guesses[0]
        return quantiles(self.guesses, n=4, method="inclusive")[2]


def strips(entries: Iterable[Entry]) -> list[Strip]:
    """A strip for each data set: guesses are of fixed spectral pooling, others have learned."""
    entries = list(entries)
    found = []
    for dataset in dict.fromkeys(entry.dataset for entry in entries):
        same = [entry for entry in entries if entry.dataset == dataset]
        guesses = sorted((e for e in same if is_guess(e)), key=lambda entry: entry.accuracy)
        learned = [
            Learned(name_start(entry, guesses), entry.accuracy, entry.spread)
            for entry in same
            if POOLINGS[entry["pooling"]].learned
        ]
        if guesses:
            found.append(Strip(dataset, [guess.accuracy for guess in guesses], learned))
    return found


def name_start(entry: Entry, guesses: Sequence[Entry]) -> str:
    """Where strides started, by the rank of that guess; ``guesses`` are sorted by accuracy.

    Of an even number of guesses, both in the middle count as the median.
    """
    starts = [guess.start for guess in guesses]
    if entry.start not in starts:
        return "from a guess not trained"
    rank, last = starts.index(entry.start), len(starts) - 1
    if rank in (0, last):
        return "from the best guess" if rank == last else "from the worst guess"
    if rank in (last // 2, len(starts) // 2):
        return "from the median guess"
    return f"from guess {last - rank + 1} of {len(starts)}"


@styled
def plot_strips(panels: Sequence[Strip], path: Path) -> Figure:
    """Draw a dot for each guess, and learned strides as diamonds with bars, a panel a data set.

    The line is the 75th percentile of the guesses. Bars are one standard deviation over the seeds.
    """
    height = 0.25 + 2.5 * len(panels)
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(0.13, 0.12 / height, 0.6, 1 - 0.3 / height, hspace=0.2)
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for panel, strip in zip(grid, panels, strict=True):
        _draw(panel, strip)
    figure.savefig(path, dpi=DPI)
    return figure


def _draw(panel: Any, strip: Strip) -> None:
    places = [(number * GOLDEN_RATIO) % 1 for number in range(len(strip.guesses))]
    panel.plot(places, strip.guesses, "o", color=INK, alpha=0.85, ms=4, mew=0)
    panel.axhline(strip.upper_quartile, color=INK, lw=1, ls="--")
    count = len(places)
    ends = [(1.75, strip.upper_quartile, f"75th percentile, of {count} guesses", INK)]
    for number, learned in enumerate(strip.learned):
        colour = COLOURS[(number + 1) % len(COLOURS)]
        x = 1.15 + 0.5 * number / max(1, len(strip.learned) - 1)
        panel.errorbar(
            x, learned.accuracy, learned.spread, fmt="D", color=colour, ms=5, capsize=2.5
        )
        ends.append((x, learned.accuracy, f"learned, {learned.start}", colour))
    panel.set(xlim=(-0.12, 1.75), xticks=[])
    panel.set_title(f"{strip.dataset}, accuracy in %", loc="left")
    panel.margins(y=0.2)
    panel.grid(axis="y")
    label_right(panel, [(x, y, two_lines(text), colour) for x, y, text, colour in ends])


def two_lines(text: str) -> str:
    """Break a label behind its comma."""
    return text.replace(", ", ",\n", 1)
