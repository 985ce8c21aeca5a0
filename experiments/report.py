"""Reports: the tables of pages, and the pictures that they link to.

A table stands between the marks ``<!-- table KIND RECIPES: begin -->`` and ``end``. Semicolons
separate recipes; without any, all are shown. Where KIND is ``pictures`` or ``strip``, links to
pictures stand there, and where it is ``strides-of-folds``, one to a picture of its own. Where KIND
is ``question``, the name of a question stands in place of recipes.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from diffstride._files import atomic_file
from experiments.averages import average_seeds, unique_labels
from experiments.fold_picture import plot_strides_of_folds
from experiments.grid import Paths
from experiments.grid_plots import (
    CostPoint,
    LearnedStrides,
    plot_accuracy_against_cost,
    plot_learned_strides,
)
from experiments.markdown import replace_tables, table_names
from experiments.questions import QUESTIONS, plot_question, select
from experiments.results import Row, initial_strides
from experiments.size_worth import size_worth_table
from experiments.strip_plot import plot_strips, strips
from experiments.tables import DETAILS, TABLES, tables_with_legend

PICTURES, STRIP, QUESTION = "pictures", "strip", "question"
STRIDES_OF_FOLDS, SIZE_WORTH = "strides-of-folds", "size-worth"
IMAGES = "images"
COSTS, STRIDES, GUESSED = "accuracy_against_cost.png", "learned_strides.png", "guesses.png"
NO_RESULTS = "No results yet: `python3 -m experiments.table` makes them."


def write_report(rows: Sequence[Row], recipes: Collection[str], paths: Paths) -> Iterator[str]:
    """Replace the tables of the pages, draw their pictures, and yield what was written.

    Tables may name recipes that no row has yet, if they are in ``recipes``.

    Raises:
        ValueError: a page cannot be filled; then nothing is written.
    """
    yield table_text(DETAILS, rows)
    filled = fill_pages(paths.pages, rows, recipes, paths.pictures)
    pictured = {kind: recipes_in_pictures(filled.values(), kind) for kind in DRAWN}
    for page in paths.pages:
        if page in filled:
            with atomic_file(page) as file:
                file.write(filled[page].encode())
        yield f"wrote {page}" if page in filled else f"there is no page {page} to write to"
    own = [name for page in filled.values() for name in own_pictures(page)]
    if not own and all(named is None for named in pictured.values()):
        yield "no pictures: no page has the mark <!-- table pictures RECIPE: begin -->"
    for kind, named in pictured.items():
        if named is not None:
            drawn = DRAWN[kind](_of_recipes(rows, named), paths.pictures)
            yield from (f"wrote {picture}" for picture in drawn)
    for name in own:
        yield f"wrote {draw_own_picture(name, rows, paths.pictures)}"


def parse_name(name: str) -> tuple[str, list[str]]:
    """The kind of a table and its recipes, from its name in a page; a question has none.

    Raises:
        ValueError: there is no such kind or question.

    >>> parse_name("details small; small, slow strides")
    ('details', ['small', 'small, slow strides'])
    """
    kind, _, recipes = name.partition(" ")
    if kind == QUESTION:
        if recipes not in QUESTIONS:
            known = ", ".join(QUESTIONS)
            raise ValueError(f"there is no question {recipes!r}: expected one of {known}")
        return kind, []
    if kind not in (*TABLES, *DRAWN, STRIDES_OF_FOLDS, SIZE_WORTH):
        known = ", ".join((*TABLES, *DRAWN, QUESTION, STRIDES_OF_FOLDS, SIZE_WORTH))
        raise ValueError(f"there is no table {name!r}: expected one of {known}, and a recipe")
    return kind, [recipe.strip() for recipe in recipes.split(";") if recipe.strip()]


def table_text(name: str, rows: Iterable[Row], pictures: str = IMAGES) -> str:
    """The text of a table with a name such as ``"summary small"``.

    Without recipes in the name there is a table for each recipe. Recipes in the name share one
    table, which compares them. ``pictures`` is the folder of the pictures, as seen from the page.

    Raises:
        ValueError: there is no such kind of table.
    """
    kind, recipes = parse_name(name)
    entries = average_seeds(_of_recipes(rows, recipes))
    if not entries:
        return NO_RESULTS
    if kind in TABLES:
        return tables_with_legend(kind, entries, together=bool(recipes))
    if kind == QUESTION:
        question = name.partition(" ")[2]
        select(QUESTIONS[question], entries)
        return f"![{QUESTIONS[question].title}]({pictures}/{_file_of(name)})"
    if kind == SIZE_WORTH:
        return size_worth_table(entries)
    if kind == STRIDES_OF_FOLDS:
        return f"![Strides learned in each fold]({pictures}/{_file_of(name)})"
    if kind == STRIP:
        return f"![Accuracy of guessed and of learned strides]({pictures}/{GUESSED})"
    shown = {"Accuracy against cost": COSTS}
    if any(entry.learned for entry in entries):
        shown["Learned strides"] = STRIDES
    return "\n\n".join(f"![{title}]({pictures}/{name})" for title, name in shown.items())


def _of_recipes(rows: Iterable[Row], recipes: Collection[str]) -> list[Row]:
    return [row for row in rows if not recipes or row["config"] in recipes]


def fill_page(
    page: str, rows: Sequence[Row], recipes: Collection[str] = (), pictures: str = IMAGES
) -> str:
    """Replace the tables of a page; see `write_report` and `table_text`.

    Raises:
        ValueError: a mark has no partner, or names an unknown table or recipe. Or a table would
            become empty because the rows have nothing for it.

    >>> print(fill_page("<!-- table summary: begin -->\\n<!-- table summary: end -->", []))
    <!-- table summary: begin -->
    <BLANKLINE>
    No results yet: `python3 -m experiments.table` makes them.
    <BLANKLINE>
    <!-- table summary: end -->
    """
    known = {*recipes, *(row["config"] for row in rows)} if rows else None

    def write(name: str, old: str) -> str:
        _check_recipes(name, known)
        text = table_text(name, rows, pictures)
        if text == NO_RESULTS and old not in ("", NO_RESULTS):
            raise ValueError(
                f"the table {name!r} is filled, but these results have no row for it: give the "
                "folder of its results with --results"
            )
        return text

    return replace_tables(page, write)


def _check_recipes(name: str, known: Collection[str] | None) -> None:
    for recipe in parse_name(name)[1]:
        if known is not None and recipe not in known:
            raise ValueError(
                f"the table {name!r} names the recipe {recipe!r}, which neither the results nor "
                f"the grid have: expected one of {', '.join(map(repr, sorted(known)))}"
            )


def fill_pages(
    pages: Iterable[Path], rows: Sequence[Row], recipes: Collection[str], pictures: Path
) -> dict[Path, str]:
    """The new texts of those pages that exist, with links to the folder ``pictures``.

    Raises:
        ValueError: as in `fill_page`; the message names the page.
    """
    filled = {}
    for page in filter(Path.exists, pages):
        try:
            folder = os.path.relpath(pictures, page.parent).replace(os.sep, "/")
            filled[page] = fill_page(page.read_text(encoding="utf-8"), rows, recipes, folder)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from error
    return filled


def recipes_in_pictures(pages: Iterable[str], kind: str = PICTURES) -> list[str] | None:
    """The recipes of the pictures of these pages, empty for all; None if no page has pictures.

    ``kind`` is that of the marks.

    Raises:
        ValueError: the pages ask for pictures of different recipes, which would be the same files.

    >>> page = "<!-- table pictures small: begin -->\\n<!-- table pictures small: end -->"
    >>> recipes_in_pictures([page, page])
    ['small']
    """
    names = dict.fromkeys(name for page in pages for name in table_names(page))
    shown = [name for name in names if parse_name(name)[0] == kind]
    if len(shown) > 1:
        raise ValueError(
            f"the pages ask for {' and '.join(map(repr, shown))}, but there is one set of "
            "pictures: name the same recipes in all pages, or report page by page with --pages and "
            "--pictures"
        )
    return parse_name(shown[0])[1] if shown else None


def own_pictures(page: str) -> list[str]:
    """The marks of a page that have a picture of their own."""
    kinds = QUESTION, STRIDES_OF_FOLDS
    return [name for name in table_names(page) if name.partition(" ")[0] in kinds]


def draw_own_picture(name: str, rows: Iterable[Row], folder: Path) -> Path:
    """Draw the picture of a mark, ``"question window"`` for example; returns the file written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _file_of(name)
    kind, recipes = parse_name(name)
    if kind == QUESTION:
        plot_question(QUESTIONS[name.partition(" ")[2]], average_seeds(rows), path)
    else:
        entries = average_seeds(_of_recipes(rows, recipes))
        plot_strides_of_folds([e for e in entries if e.learned and e["fold"] is not None], path)
    return path


def _file_of(name: str) -> str:
    """The file of a mark's picture.

    >>> _file_of("question window"), _file_of("strides-of-folds fsdd_mel, measured strides")
    ('question_window.png', 'strides_of_folds_fsdd_mel_measured_strides.png')
    """
    return "_".join(re.findall(r"\w+", name)) + ".png"


def draw_pictures(rows: Iterable[Row], folder: Path) -> list[Path]:
    """Plot accuracy against cost, and the learned strides; returns the files written."""
    entries = average_seeds(rows)
    labelled = list(zip(entries, unique_labels(entries), strict=True))
    points = [
        CostPoint(
            entry.dataset,
            label,
            entry.start,
            entry["multiply_adds_end"],
            entry.accuracy,
            entry.spread,
            entry.cost_range("end"),
        )
        for entry, label in labelled
    ]
    strides = [
        LearnedStrides(
            entry.dataset, f"{label}, from {entry.start}", row["strides_end"], initial_strides(row)
        )
        for entry, label in labelled
        for row in entry.rows
        if row["strides_end"]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    if points:
        plot_accuracy_against_cost(points, folder / COSTS)
    if strides:
        plot_learned_strides(strides, folder / STRIDES)
    return [folder / name for name, shown in ((COSTS, points), (STRIDES, strides)) if shown]


def draw_strip(rows: Iterable[Row], folder: Path) -> list[Path]:
    """Plot the accuracy of guessed and of learned strides; returns the files written."""
    found = strips(average_seeds(rows))
    if not found:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    plot_strips(found, folder / GUESSED)
    return [folder / GUESSED]


DRAWN: dict[str, Callable[[Iterable[Row], Path], list[Path]]] = {
    PICTURES: draw_pictures,
    STRIP: draw_strip,
}
"""What draws the pictures of a kind of mark."""
