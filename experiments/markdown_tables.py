"""Tables of the files of results, in Markdown."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from experiments.markdown import table
from experiments.pictures import COSTS, FOLDER, STRIDES
from experiments.result_rows import Row
from experiments.seed_averages import Entry, average, tell_apart
from experiments.table_cells import (
    NEAR,
    NONE,
    STEADY,
    accuracy,
    all_of,
    cost,
    learned,
    minutes,
    varies,
)

PICTURES = "pictures"
NONE_YET = "No results yet: `python3 -m experiments.table` makes them."


def _legend(kind: str, entries: Sequence[Entry]) -> str:
    """What the figures of a table are, no more than these entries have."""
    # Recipes are tried on images of their own, so that the test images have no part in the choice.
    what = "Accuracy on images that were not trained on," if kind == TRIALS else "Test accuracy"
    count = " (number of runs)" if kind == SUMMARY else ""
    text = (
        f"{what} after the last epoch in percent, mean ± standard deviation over the seeds{count}, "
        "at multiply-adds per image in millions, from start to end where they change."
    )
    if any(varies(entry, when) for entry in entries for when in ("start", "end")):
        text += (
            f" Of runs that differ by more than {100 * NEAR:g} % in these, the least and the most."
        )
    several = any(entry.learned and entry.count > 1 for entry in entries)
    if several and kind in (DETAILS, TRIALS):
        text += f" Learned strides are means, ± standard deviation where it is above {STEADY}."
    return text


def _recipe(entries: Sequence[Entry]) -> str:
    recipes = [f"`{name}`" for name in dict.fromkeys(entry["config"] for entry in entries)]
    width = f"width {entries[0]['width']}, " if entries[0]["width"] else ""
    several = "s" if len(recipes) > 1 else ""
    return f"Recipe{several} {' and '.join(recipes)}, {width}{entries[0]['epochs']} epochs:"


def _place(entry: Entry) -> tuple[str, str]:
    return entry.dataset, entry.start


def _summary(entries: list[Entry]) -> str:
    """A line for each pooling, a column for each initialisation, and what lies between them."""
    starts = sorted({entry.start for entry in entries})
    between = ["lost between them"] if len(starts) == 2 else []
    header = ["data set", "pooling", *(f"from strides {start}" for start in starts)]
    lines = []
    for (dataset, _, label), group in groupby(_labelled(entries), key=_line):
        found = {entry.start: entry for entry, _ in group}
        cells = [all_of(found.get(start)) for start in starts]
        if between:
            first, *others = (found[start].accuracy for start in starts if start in found)
            cells.append(f"{first - others[0]:.2f}" if others else NONE)
        figures = [entry.published for entry in found.values() if entry.published]
        cells.append("; ".join(map(all_of, figures)) or NONE)
        lines.append([dataset, label, *cells])
    return table([*header, *between, "published, width 64, 400 epochs"], lines)


def _labelled(entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    return list(zip(entries, tell_apart(entries), strict=True))


def _line(labelled: tuple[Entry, str]) -> tuple[str, str, str]:
    entry, label = labelled
    return entry.dataset, entry["config"], label


def _equal_cost(entries: list[Entry]) -> str:
    """What can be had for the multiply-adds of each strided network, about."""
    lines = []
    labelled = _labelled(entries)
    strided = [entry for entry in entries if entry["pooling"] == "strided" and not varies(entry)]
    listed: list[Entry] = []
    for network in sorted(strided, key=_place):
        near = [(entry, label) for entry, label in labelled if _is_near(entry, network)]
        best = max((entry.accuracy for entry, _ in near if entry.guessed), default=None)
        for entry, label in sorted(near, key=lambda each: not each[0].guessed):
            if entry in listed:
                continue  # beside a strided network of about the same cost
            listed.append(entry)
            ahead = "" if entry.guessed or best is None else f"{entry.accuracy - best:+.2f}"
            cells = [label, accuracy(entry), str(entry.count), cost(entry), ahead]
            lines.append([entry.dataset, entry.start, *cells])
    header = ["data set", "strides", "pooling", "accuracy", "runs", "multiply-adds"]
    return table([*header, "points ahead of the best that was guessed"], lines)


def _is_near(entry: Entry, strided: Entry) -> bool:
    """Whether it is for the same images, and all its runs cost in the end what strided ones do."""
    allowed = strided["multiply_adds_end"]
    near = all(abs(cost - allowed) <= NEAR * allowed for cost in entry.cost_range("end"))
    return entry.dataset == strided.dataset and near


def _details(entries: list[Entry]) -> str:
    """All there is to know of each entry."""
    columns: dict[str, Callable[[Entry, str], str]] = {
        "data set": lambda entry, _: entry.dataset,
        "strides": lambda entry, _: entry.start,
        "pooling": lambda _, label: label,
        "accuracy": lambda entry, _: accuracy(entry),
        "runs": lambda entry, _: str(entry.count),
        "multiply-adds": lambda entry, _: cost(entry),
        "strides learned": lambda entry, _: learned(entry),
        "published, width 64, 400 epochs": lambda entry, _: all_of(entry.published),
        "minutes (threads)": lambda entry, _: minutes(entry),
    }
    lines = ([show(*each) for show in columns.values()] for each in _labelled(entries))
    return table(list(columns), lines)


def _trials(entries: list[Entry]) -> str:
    """Recipes against each other, the best first."""
    labelled: list[tuple[Entry, str]] = []
    for _, group in groupby(entries, key=lambda entry: entry["config"]):
        labelled += _labelled(list(group))
    lines = []
    for entry, label in sorted(labelled, key=lambda each: -each[0].accuracy):
        figures = [accuracy(entry), str(entry.count), cost(entry), learned(entry)]
        lines.append([entry["config"], entry.dataset, entry.start, label, *figures])
    header = ["recipe", "data set", "strides", "pooling", "accuracy", "runs", "multiply-adds"]
    return table([*header, "strides learned"], lines)


def _pictures(entries: list[Entry], folder: str) -> str:
    """The pictures that `pictures.draw` makes of these, in a folder as seen from the page."""
    shown = {"Accuracy against cost": COSTS}
    if any(entry.learned for entry in entries):
        shown["Learned strides"] = STRIDES
    return "\n\n".join(f"![{title}]({folder}/{name})" for title, name in shown.items())


SUMMARY, EQUAL_COST, DETAILS, TRIALS = "summary", "equal-cost", "details", "trials"
TABLES: dict[str, Callable[[list[Entry]], str]] = {
    SUMMARY: _summary,
    EQUAL_COST: _equal_cost,
    DETAILS: _details,
    TRIALS: _trials,
}


def parse_name(name: str) -> tuple[str, list[str]]:
    """What kind of table a name asks for, and the recipes it is of; none for all.

    Raises:
        ValueError: there is no such table.

    >>> parse_name("details small; small, slow strides")
    ('details', ['small', 'small, slow strides'])
    """
    kind, _, recipes = name.partition(" ")
    if kind not in (*TABLES, PICTURES):
        known = ", ".join((*TABLES, PICTURES))
        raise ValueError(f"no table {name!r}: expected one of {known}, and a recipe")
    return kind, [recipe.strip() for recipe in recipes.split(";") if recipe.strip()]


def block(name: str, rows: Iterable[Row], pictures: str = FOLDER) -> str:
    """The table of this name: a key of `TABLES`, and after a blank the recipe it is of, or all.

    Recipes that are to be compared stand with semicolons between them. A table ``pictures`` is
    made of links into the folder ``pictures``, as seen from the page.

    Raises:
        ValueError: there is no such table.
    """
    kind, chosen = parse_name(name)
    entries = [entry for entry in average(rows) if not chosen or entry["config"] in chosen]
    if entries and kind == PICTURES:
        return _pictures(entries, pictures)
    if entries and kind == TRIALS:
        return f"{_legend(kind, entries)}\n\n{_trials(entries)}"

    def group(entry: Entry) -> tuple[str, ...]:
        # A table for each recipe: the figures of two are not to be compared, unless it is said so.
        recipe = "" if chosen else entry["config"]
        return recipe, str(entry["width"]), str(entry["epochs"])

    tables = []
    for _, found in groupby(sorted(entries, key=group), key=group):
        members = list(found)
        tables.append(f"{_recipe(members)}\n\n{TABLES[kind](members)}")
    return "\n\n".join([_legend(kind, entries), *tables]) if tables else NONE_YET
