"""The tables of the results in Markdown: summary, equal cost, details, trials and guesses."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from statistics import mean, stdev

from diffstride._wording import counted
from experiments.averages import Entry, is_guess, unique_labels
from experiments.markdown import table
from experiments.published import Figure

NEAR = 0.02  # relative difference up to which costs count as equal
STEADY = 0.05  # standard deviations of learned strides up to this are not shown
MISSING = "–"
PUBLISHED = "published, width 64, 400 epochs"
SUMMARY, EQUAL_COST, DETAILS, TRIALS = "summary", "equal-cost", "details", "trials"
GUESSES, STARTS, FOLDS = "guesses", "starts", "folds"


# Cells


def accuracy_cell(entry: Entry | Figure) -> str:
    """Mean accuracy and its standard deviation in percent."""
    spread = "" if entry.spread is None else f" ± {entry.spread:.2f}"
    return f"{entry.accuracy:.2f}{spread} %"


def cost_cell(entry: Entry | Figure) -> str:
    """MACs in millions at the start and the end; a range where the runs differ."""
    if isinstance(entry, Figure):
        return f"{entry.multiply_adds / 1e6:.0f} M"
    start, end = (_millions(entry, when) for when in ("start", "end"))
    return f"{end} M" if start == end else f"{start} M to {end} M"


def _millions(entry: Entry, when: str) -> str:
    if cost_varies(entry, when):
        return "–".join(f"{cost / 1e6:.1f}" for cost in entry.cost_range(when))
    return f"{entry[f'multiply_adds_{when}'] / 1e6:.1f}"


def cost_varies(entry: Entry, when: str = "end") -> bool:
    """Whether the costs of the runs differ by more than `NEAR`."""
    low, high = entry.cost_range(when)
    return high - low > NEAR * low


def figure_cell(entry: Entry | Figure | None) -> str:
    """Accuracy, number of runs and cost."""
    if entry is None:
        return MISSING
    count = f" ({entry.count})" if isinstance(entry, Entry) else ""
    return f"{accuracy_cell(entry)}{count}, {cost_cell(entry)}"


def strides_cell(entry: Entry) -> str:
    """Learned strides of each layer, with standard deviations above `STEADY`."""
    spreads = entry.learned_spread
    layers = (
        " x ".join(
            f"{value:.2f} ± {spread:.2f}" if spread > STEADY else f"{value:.2f}"
            for value, spread in zip(values, spreads[layer], strict=True)
        )
        for layer, values in entry.learned.items()
    )
    return ", ".join(layers) or MISSING


def minutes_cell(entry: Entry) -> str:
    """Mean duration of a run in minutes, for each number of threads."""
    found: dict[int, list[float]] = {}
    for row in entry.rows:
        found.setdefault(row["threads"], []).append(row["seconds"] / 60)
    return ", ".join(f"{mean(times):.1f} ({threads})" for threads, times in sorted(found.items()))


# Tables

Labelled = tuple[Entry, str]
COLUMNS = ("data set", "strides", "pooling", "accuracy", "runs", "multiply-adds")


def _labelled(entries: Sequence[Entry]) -> list[Labelled]:
    return list(zip(entries, unique_labels(entries), strict=True))


def _cells(entry: Entry, label: str) -> list[str]:
    """The cells of `COLUMNS`."""
    figures = [accuracy_cell(entry), str(entry.count), cost_cell(entry)]
    return [entry.dataset, entry.start, label, *figures]


def summary_table(entries: Sequence[Entry]) -> str:
    """A row for each pooling, a column for each choice of initial strides."""
    starts = sorted({entry.start for entry in entries})
    header = ["data set", "pooling", *(f"from strides {start}" for start in starts)]
    header += ["lost between them"] * (len(starts) == 2) + [PUBLISHED]

    def line(labelled: Labelled) -> tuple[str, str, str]:
        entry, label = labelled
        return entry.dataset, entry["config"], label

    lines = []
    for (dataset, _, label), group in groupby(_labelled(entries), key=line):
        found = {entry.start: entry for entry, _ in group}
        cells = [figure_cell(found.get(start)) for start in starts]
        if len(starts) == 2:
            values = [found[start].accuracy for start in starts if start in found]
            cells.append(f"{values[0] - values[1]:.2f}" if len(values) == 2 else MISSING)
        figures = [entry.published for entry in found.values() if entry.published]
        cells.append("; ".join(map(figure_cell, figures)) or MISSING)
        lines.append([dataset, label, *cells])
    return table(header, lines)


def equal_cost_table(entries: Sequence[Entry]) -> str:
    """For each strided network, all entries that end at about its cost."""
    lines = []
    labelled = _labelled(entries)
    strided = [e for e in entries if e["pooling"] == "strided" and not cost_varies(e)]
    listed: list[Entry] = []
    for network in sorted(strided, key=lambda entry: (entry.dataset, entry.start)):
        near = [(entry, label) for entry, label in labelled if _is_near(entry, network)]
        best = max((entry.accuracy for entry, _ in near if entry.guessed), default=None)
        for entry, label in sorted(near, key=lambda each: not each[0].guessed):
            if entry in listed:
                continue  # with another strided network of about the same cost
            listed.append(entry)
            ahead = "" if entry.guessed or best is None else f"{entry.accuracy - best:+.2f}"
            lines.append([*_cells(entry, label), ahead])
    return table([*COLUMNS, "points ahead of the best that was guessed"], lines)


def _is_near(entry: Entry, strided: Entry) -> bool:
    """Whether all runs of an entry end at the cost of a strided network on the same data set."""
    cost = strided["multiply_adds_end"]
    near = all(abs(each - cost) <= NEAR * cost for each in entry.cost_range("end"))
    return entry.dataset == strided.dataset and near


def details_table(entries: Sequence[Entry]) -> str:
    """A row with all values for each entry; the summary has the published ones."""
    lines = [
        [*_cells(e, label), strides_cell(e), minutes_cell(e)] for e, label in _labelled(entries)
    ]
    header = [*COLUMNS, "strides learned", "minutes (threads)"]
    return table(header, lines)


def trials_table(entries: Sequence[Entry]) -> str:
    """All recipes in one table, the most accurate first."""
    labelled: list[Labelled] = []
    for _, group in groupby(entries, key=lambda entry: entry["config"]):
        labelled += _labelled(list(group))
    labelled.sort(key=lambda each: -each[0].accuracy)
    lines = ([e["config"], *_cells(e, label), strides_cell(e)] for e, label in labelled)
    return table(["recipe", *COLUMNS, "strides learned"], lines)


def guesses_table(entries: Sequence[Entry]) -> str:
    """Guessed and learned strides of each data set, the most accurate first."""
    lines = [
        [
            entry.dataset,
            entry.start,
            label if entry.learned else "guessed",
            strides_cell(entry),
            cost_cell(entry),
            accuracy_cell(entry),
            str(entry.count),
        ]
        for entry, label in sorted(
            _labelled(entries), key=lambda each: (each[0].dataset, -each[0].accuracy)
        )
    ]
    header = ["data set", "strides", "how", "strides learned", "MACs", "accuracy", "runs"]
    return table(header, lines)


def starts_table(entries: Sequence[Entry]) -> str:
    """What strides give fixed, and what they give learned from there; the largest gain first."""
    fixed = {(entry.dataset, entry.start): entry for entry in entries if is_guess(entry)}
    learned = [e for e in entries if e.learned and (e.dataset, e.start) in fixed]
    gains = [e.accuracy - fixed[e.dataset, e.start].accuracy for e in learned]
    lines = [
        [
            entry.dataset,
            entry.start,
            entry["config"],
            *map(figure_cell, (fixed[entry.dataset, entry.start], entry)),
            f"{gain:+.2f}",
        ]
        for gain, entry in sorted(zip(gains, learned, strict=True), key=lambda each: -each[0])
    ]
    header = ["data set", "strides", "recipe", "fixed", "learned from there", "gain"]
    return table(header, lines)


def folds_table(entries: Sequence[Entry]) -> str:
    """Entries of cross-validation, the most accurate first, with a column for each fold."""
    folded = [(e, label) for e, label in _labelled(entries) if e["fold"] is not None]
    folds = sorted({row["fold"] for entry, _ in folded for row in entry.rows})
    lines = []
    for entry, label in sorted(folded, key=lambda each: -(mean_of_folds(each[0], folds) or 0)):
        by_fold = [_accuracies(entry, fold=fold) for fold in folds]
        cells = [f"{mean(each):.1f}" if each else MISSING for each in by_fold]
        overall = mean_of_folds(entry, folds)
        shown = MISSING if overall is None else f"{overall:.1f}{seed_spread(entry)} %"
        strides = strides_cell(entry)
        lines.append(
            [entry.start, label, cost_cell(entry), *cells, shown, str(entry.count), strides]
        )
    header = ["strides", "pooling", "MACs", *(f"fold {fold}" for fold in folds)]
    return table([*header, "mean", "runs", "strides learned"], lines)


def mean_of_folds(entry: Entry, folds: Sequence[int]) -> float | None:
    """The mean over the folds of the mean over the seeds, None where a fold is missing."""
    each = [_accuracies(entry, fold=fold) for fold in folds]
    return mean(map(mean, each)) if all(each) else None


def seed_spread(entry: Entry) -> str:
    """The standard deviation over the seeds of the mean over the folds."""
    folds = {row["fold"] for row in entry.rows}
    seeds = {row["seed"] for row in entry.rows}
    each = [_accuracies(entry, seed=seed) for seed in seeds]
    means = [mean(values) for values in each if len(values) == len(folds)]
    return f" ± {stdev(means):.1f}" if len(means) > 1 else ""


def _accuracies(entry: Entry, **values: int) -> list[float]:
    return [row["test_accuracy"] for row in entry.rows if values.items() <= row.items()]


TABLES: dict[str, Callable[[Sequence[Entry]], str]] = {
    SUMMARY: summary_table,
    EQUAL_COST: equal_cost_table,
    DETAILS: details_table,
    TRIALS: trials_table,
    GUESSES: guesses_table,
    STARTS: starts_table,
    FOLDS: folds_table,
}


# Tables with their text


def tables_with_legend(kind: str, entries: Iterable[Entry], together: bool) -> str:
    """The legend of a kind of table, then a table for each recipe with a line that names it.

    With ``together``, recipes of the same width and epochs are compared in one table.
    """
    entries = list(entries)
    parts = [_legend(kind, entries)]
    if kind == TRIALS:
        return "\n\n".join([*parts, trials_table(entries)])

    def recipe(entry: Entry) -> tuple[str, ...]:
        return "" if together else entry["config"], str(entry["width"]), str(entry["epochs"])

    for _, group in groupby(sorted(entries, key=recipe), key=recipe):
        members = list(group)
        parts += [_recipe_line(members), TABLES[kind](members)]
    return "\n\n".join(parts)


def _legend(kind: str, entries: Sequence[Entry]) -> str:
    # Recipes are chosen by held-out images, so that the choice does not depend on the test images.
    what = "Accuracy on held-out training images" if kind == TRIALS else "Test accuracy"
    count = " (number of runs)" if kind in (SUMMARY, STARTS) else ""
    if kind == FOLDS:
        return (
            "Test accuracy after the last epoch in percent, in each fold the mean over the seeds. "
            "The last mean is that of the folds, ± the standard deviation over the seeds that have "
            "all folds. MACs of one example in millions, from start to end of the training where "
            "they change. Learned strides are means over folds and seeds, ± standard deviation if "
            f"it is above {STEADY}."
        )
    text = (
        f"{what} after the last epoch in percent, mean ± standard deviation over the seeds{count}; "
        "MACs of one image in millions, from start to end of the training where they change."
    )
    if any(cost_varies(entry, when) for entry in entries for when in ("start", "end")):
        text += (
            f" Where the MACs of the seeds differ by more than {100 * NEAR:g} %, the table shows "
            "their range."
        )
    several = any(entry.learned and entry.count > 1 for entry in entries)
    if several and kind in (DETAILS, TRIALS, GUESSES):
        text += f" Learned strides are means, ± standard deviation if it is above {STEADY}."
    return text


def _recipe_line(entries: Sequence[Entry]) -> str:
    recipes = [f"`{name}`" for name in dict.fromkeys(entry["config"] for entry in entries)]
    width = f"width {entries[0]['width']}, " if entries[0]["width"] else ""
    plural = "s" if len(recipes) > 1 else ""
    epochs = counted(entries[0]["epochs"], "epoch")
    return f"Recipe{plural} {' and '.join(recipes)}, {width}{epochs}:"
