"""The pictures of docs/exploration.md: one for each question, with the trials that answer it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from diffstride._picture_style import COLOURS, DPI, INK, WIDTH, styled
from experiments.averages import Entry
from experiments.labels import wrapped

LINE = 0.135  # inches
LONGEST = 27  # letters in a line of a label


class Question(NamedTuple):
    """What a picture compares: the title, and for each label the values that select its trial."""

    title: str
    trials: Mapping[str, Mapping[str, Any]]


EVEN, COARSE, UNEVEN = [1, 1, 2, 2, 2], [1, 1, 3, 2, 3], [1, 1, 3, 1, 4]
USUAL = "R = 4, stride learning rate 0.02, straight through, none in the stem"
FREE = {"dataset": "cifar10", "budget": None}
HELD = {"dataset": "cifar10", "budget": "strided", "strides_start": EVEN}
HARD = {"dataset": "cifar100", "budget": "strided", "strides_start": EVEN, "order": "before"}
SMALL = {"dataset": "cifar10", "config": "as in cifar10_small", "strides_start": EVEN}
FIXED = {"dataset": "cifar100", "config": "none in the stem", "pooling": "spectral"}


def _rate(rate: str) -> str:
    return f"R = 4, stride learning rate {rate}, straight through, none in the stem"


def _phase(what: str) -> dict[str, Any]:
    return HARD | {"config": f"R = 4, rate 0.02, straight through, none in the stem, {what}"}


QUESTIONS = {
    "window": Question(
        "CIFAR-10, under the strided cost",
        {
            "strided convolution": SMALL | {"pooling": "strided"},
            "window of width 4 in the output": HELD | {"config": "R = 4"},
            "window of width 1 in the output": HELD | {"config": "R = 1"},
            "the same, rate 0.02, no layer in the stem": HELD
            | {"config": "R = 1, stride learning rate 0.02, none in the stem"},
            "straight through, width 1": HELD
            | {"config": "R = 1, stride learning rate 0.02, straight through, none in the stem"},
            "straight through, width 4": HELD | {"config": USUAL},
            "fixed strides of 2, blur pooling": SMALL | {"pooling": "blur"},
            "fixed strides of 2, spectral pooling": SMALL | {"pooling": "spectral"},
        },
    ),
    "rate": Question(
        "CIFAR-10, without a budget",
        {
            f"rate {rate}, from {','.join(map(str, start))}": FREE
            | {"config": _rate(rate), "strides_start": start}
            for start in (EVEN, COARSE)
            for rate in ("0.02", "0.1", "0.2")
        },
    ),
    "phase": Question(
        "CIFAR-100, under the strided cost",
        {
            "fixed strides of 2": FIXED | {"strides_start": EVEN},
            "learned in the whole training": HARD | {"config": USUAL},
            "learned in the first half": _phase("until half time"),
            "learned after the first third": _phase("from a third on"),
            "with strides up to 2.2": _phase("strides up to 2.2"),
            "one stride for both axes": _phase("shared axes"),
            "pooled after the convolutions": HARD | {"config": USUAL, "order": "after"},
            "at a rate of 0.005": HARD | {"config": _rate("0.005")},
        },
    ),
    "start": Question(
        "CIFAR-100, about 35 M MACs",
        {
            "1,1,3,1,4, strided convolution": {
                "dataset": "cifar100",
                "pooling": "strided",
                "strides_start": UNEVEN,
            },
            "1,1,3,1,4, fixed": FIXED | {"strides_start": UNEVEN},
            "learned from 1,1,3,1,4": {"dataset": "cifar100", "strides_start": UNEVEN}
            | {"pooling": "diffstride", "config": USUAL},
            "1,1,2,2,2, fixed": FIXED | {"strides_start": EVEN},
            "learned from 1,1,2,2,2": HARD | {"config": USUAL},
        },
    ),
}


def select(question: Question, entries: Sequence[Entry]) -> dict[str, Entry]:
    """The trial of each label.

    Raises:
        ValueError: no trial has the values, or several have.
    """
    chosen = {}
    for label, values in question.trials.items():
        found = [e for e in entries if all(e[key] == value for key, value in values.items())]
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} trials are {label!r}, with {dict(values)}: expected one; correct "
                "experiments/questions.py, or give the results with --results"
            )
        chosen[label] = found[0]
    return chosen


@styled
def plot_question(question: Question, entries: Sequence[Entry], path: Path) -> Figure:
    """Draw a dot for each trial, and MACs at its end; bars are a standard deviation.

    Fixed strides are grey, learned ones in colour.
    """
    chosen = select(question, entries)
    labels = [wrapped(label, LONGEST) for label in chosen]
    lines = [label.count("\n") + 1.6 for label in labels]
    places = [sum(lines[:number]) + each / 2 for number, each in enumerate(lines)]
    height = 0.7 + LINE * sum(lines)
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(0.44, 0.44 / height, 0.84, 1 - 0.26 / height)
    panel = figure.subplots()
    for place, entry in zip(places, chosen.values(), strict=True):
        colour = COLOURS[1] if entry.learned else INK
        panel.errorbar(entry.accuracy, place, xerr=entry.spread, fmt="o", color=colour, ms=5)
        cost = f"{entry['multiply_adds_end'] / 1e6:.1f} M"
        panel.annotate(cost, (1.06, place), xycoords=("axes fraction", "data"), va="center")
    panel.set(yticks=places, yticklabels=labels, ylim=(sum(lines), 0))
    panel.set_xlabel("accuracy in %; MACs at the end")
    panel.set_title(question.title, x=-1.08, ha="left")
    panel.tick_params(axis="y", length=0)
    panel.margins(x=0.15)
    panel.grid(axis="x")
    figure.savefig(path, dpi=DPI)
    return figure
