"""What the cells of a table say: figures of an entry, as text."""

from statistics import mean

from experiments.published_results import Figure
from experiments.seed_averages import Entry

NEAR = 0.02  # part by which costs may differ that count as equal
STEADY = 0.05  # standard deviation of a learned stride that is not worth mentioning
NONE = "–"


def accuracy(entry: Entry | Figure) -> str:
    """Mean and spread in percent."""
    spread = "" if entry.spread is None else f" ± {entry.spread:.2f}"
    return f"{entry.accuracy:.2f}{spread} %"


def cost(entry: Entry | Figure) -> str:
    """Multiply-adds in millions, of runs that end at different costs the least and the most."""
    if isinstance(entry, Figure):
        return f"{entry.multiply_adds / 1e6:.0f} M"
    start, end = (_millions(entry, when) for when in ("start", "end"))
    return f"{end} M" if start == end else f"{start} M to {end} M"


def varies(entry: Entry, when: str = "end") -> bool:
    """Whether the costs of the runs are too different for a mean to stand for all."""
    low, high = entry.cost_range(when)
    return high - low > NEAR * low


def _millions(entry: Entry, when: str) -> str:
    low, high = entry.cost_range(when)
    if varies(entry, when):
        return f"{low / 1e6:.1f}–{high / 1e6:.1f}"
    return f"{entry[f'multiply_adds_{when}'] / 1e6:.1f}"


def all_of(entry: Entry | Figure | None) -> str:
    """Accuracy, number of runs and cost."""
    if entry is None:
        return NONE
    count = f" ({entry.count})" if isinstance(entry, Entry) else ""
    return f"{accuracy(entry)}{count}, {cost(entry)}"


def learned(entry: Entry) -> str:
    """The strides that were learned, layer by layer, with their spread where they differ."""
    spreads = entry.learned_spread
    layers = (
        " x ".join(
            f"{value:.2f} ± {spread:.2f}" if spread > STEADY else f"{value:.2f}"
            for value, spread in zip(values, spreads[layer], strict=True)
        )
        for layer, values in entry.learned.items()
    )
    return ", ".join(layers) or NONE


def minutes(entry: Entry) -> str:
    """How long a run takes, on each number of threads that there were."""
    found: dict[int, list[float]] = {}
    for row in entry.rows:
        found.setdefault(row["threads"], []).append(row["seconds"] / 60)
    return ", ".join(f"{mean(times):.1f} ({threads})" for threads, times in sorted(found.items()))
