"""Tables of the files of results, in Markdown, and their places in the pages that show them."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from diffstride.examples.averages import Entry, average, tell_apart
from diffstride.examples.pictures import COSTS, FOLDER, STRIDES
from diffstride.examples.published import Figure
from diffstride.examples.rows import Row

PICTURES = "pictures"
NEAR = 0.02  # part by which costs may differ that count as equal
NONE_YET = "No results yet: `python3 -m diffstride.examples.table` makes them."
LEGEND = (
    "Test accuracy after the last epoch in percent, mean ± standard deviation over the seeds "
    "(number of runs), at multiply-adds per image in millions, from start to end where they change."
)
PLACE = re.compile(
    r"(?P<begin><!-- table (?P<name>[^:>]+): begin[^>]*-->\n)(?P<body>.*?)"
    r"(?P<end><!-- table (?P=name): end -->)",
    re.DOTALL,
)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    >>> print(markdown(["pooling", "%"], [["max", "87.1"]]))
    | pooling | % |
    | --- | --- |
    | max | 87.1 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy(entry: Entry | Figure) -> str:
    """Mean and spread in percent."""
    spread = "" if entry.spread is None else f" ± {entry.spread:.2f}"
    return f"{entry.accuracy:.2f}{spread} %"


def cost(entry: Entry | Figure) -> str:
    """Multiply-adds in millions."""
    if isinstance(entry, Figure):
        return f"{entry.multiply_adds / 1e6:.0f} M"
    start, end = (f"{entry[f'multiply_adds_{when}'] / 1e6:.1f}" for when in ("start", "end"))
    return f"{end} M" if start == end else f"{start} M to {end} M"


def _cell(entry: Entry | Figure | None) -> str:
    if entry is None:
        return "–"
    count = f" ({entry.count})" if isinstance(entry, Entry) else ""
    return f"{accuracy(entry)}{count}, {cost(entry)}"


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
    for (dataset, label), group in groupby(entries, key=lambda e: (e.dataset, e.label)):
        found = {entry.start: entry for entry in group}
        cells = [_cell(found.get(start)) for start in starts]
        if between:
            first, *others = (found[start].accuracy for start in starts if start in found)
            cells.append(f"{first - others[0]:.2f}" if others else "–")
        figures = [entry.published for entry in found.values() if entry.published]
        cells.append("; ".join(map(_cell, figures)) or "–")
        lines.append([dataset, label, *cells])
    return markdown([*header, *between, "published, width 64, 400 epochs"], lines)


def _equal_cost(entries: list[Entry]) -> str:
    """What can be had for the multiply-adds of each strided network, about."""
    lines = []
    labelled = list(zip(entries, tell_apart(entries), strict=True))
    strided = [entry for entry in entries if entry["pooling"] == "strided"]
    for network in sorted(strided, key=_place):
        near = [(entry, label) for entry, label in labelled if _is_near(entry, network)]
        best = max(entry.accuracy for entry, _ in near if entry.guessed)
        for entry, label in sorted(near, key=lambda each: not each[0].guessed):
            ahead = "" if entry.guessed else f"{entry.accuracy - best:+.2f}"
            cells = [label, accuracy(entry), str(entry.count), cost(entry), ahead]
            lines.append([entry.dataset, entry.start, *cells])
    header = ["data set", "strides", "pooling", "accuracy", "runs", "multiply-adds"]
    return markdown([*header, "points ahead of the best that was guessed"], lines)


def _is_near(entry: Entry, strided: Entry) -> bool:
    """Whether it is for the same images and costs in the end what the strided network does."""
    by, allowed = "multiply_adds_end", strided["multiply_adds_end"]
    return entry.dataset == strided.dataset and abs(entry[by] - allowed) <= NEAR * allowed


def _details(entries: list[Entry]) -> str:
    """All there is to know of each entry."""
    columns: dict[str, Callable[[Entry], str]] = {
        "data set": lambda entry: entry.dataset,
        "strides": lambda entry: entry.start,
        "pooling": lambda entry: entry.label,
        "accuracy": accuracy,
        "runs": lambda entry: str(entry.count),
        "multiply-adds": cost,
        "strides learned": _learned,
        "published, width 64, 400 epochs": lambda entry: _cell(entry.published),
        "minutes (threads)": lambda entry: f"{entry['seconds'] / 60:.1f} ({_threads(entry)})",
    }
    return markdown(
        list(columns), ([show(entry) for show in columns.values()] for entry in entries)
    )


def _trials(entries: list[Entry]) -> str:
    """Recipes against each other, the best first."""
    lines = []
    for entry in sorted(entries, key=lambda entry: -entry.accuracy):
        figures = [accuracy(entry), str(entry.count), cost(entry), _learned(entry)]
        lines.append([entry["config"], entry.dataset, entry.start, entry.label, *figures])
    header = ["recipe", "data set", "strides", "pooling", "accuracy", "runs", "multiply-adds"]
    return markdown([*header, "strides learned"], lines)


def _learned(entry: Entry) -> str:
    pairs = (" x ".join(f"{value:.2f}" for value in axes) for axes in entry.learned.values())
    return ", ".join(pairs) or "–"


def _threads(entry: Entry) -> str:
    return "/".join(sorted({str(row["threads"]) for row in entry.rows}))


def _pictures(entries: list[Entry]) -> str:
    """The pictures that `pictures.draw` makes of these, for a page in the folder above theirs."""
    shown = {"Accuracy against cost": COSTS}
    if any(entry.learned for entry in entries):
        shown["Learned strides"] = STRIDES
    return "\n\n".join(f"![{title}]({FOLDER}/{name})" for title, name in shown.items())


TRIALS = "trials"
TABLES: dict[str, Callable[[list[Entry]], str]] = {
    "summary": _summary,
    "equal-cost": _equal_cost,
    "details": _details,
    TRIALS: _trials,
}


def block(name: str, rows: Iterable[Row]) -> str:
    """The table of this name: a key of `TABLES`, and after a blank the recipe it is of, or all.

    Recipes that are to be compared stand with semicolons between them. ``pictures`` stands for
    links to the pictures.

    Raises:
        ValueError: there is no such table.
    """
    kind, _, recipes = name.partition(" ")
    if kind not in (*TABLES, PICTURES):
        known = ", ".join((*TABLES, PICTURES))
        raise ValueError(f"no table {name!r}: expected one of {known}, and a recipe")
    chosen = [recipe.strip() for recipe in recipes.split(";") if recipe]
    entries = [entry for entry in average(rows) if not chosen or entry["config"] in chosen]
    if entries and kind == PICTURES:
        return _pictures(entries)
    if entries and kind == TRIALS:
        return f"{LEGEND}\n\n{_trials(entries)}"

    def group(entry: Entry) -> tuple[str, ...]:
        # A table for each recipe: the figures of two are not to be compared, unless it is said so.
        recipe = "" if chosen else entry["config"]
        return recipe, str(entry["width"]), str(entry["epochs"])

    tables = []
    for _, found in groupby(sorted(entries, key=group), key=group):
        members = list(found)
        tables.append(f"{_recipe(members)}\n\n{TABLES[kind](members)}")
    return "\n\n".join([LEGEND, *tables]) if tables else NONE_YET


def fill(page: str, rows: Sequence[Row]) -> str:
    """A page with its tables made anew, between ``<!-- table NAME: begin -->`` and ``end``.

    >>> print(fill("<!-- table summary: begin -->\\n<!-- table summary: end -->", []))
    <!-- table summary: begin -->
    <BLANKLINE>
    No results yet: `python3 -m diffstride.examples.table` makes them.
    <BLANKLINE>
    <!-- table summary: end -->
    """

    def made(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{block(found['name'], rows)}\n\n{found['end']}"

    return PLACE.sub(made, page)
