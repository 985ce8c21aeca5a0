"""Pages with tables and pictures of the results."""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from experiments.markdown import replace_tables, table_names
from experiments.markdown_tables import NONE_YET, PICTURES, block, parse_name
from experiments.pictures import FOLDER
from experiments.result_rows import Row


def fill(
    page: str, rows: Sequence[Row], recipes: Collection[str] = (), pictures: str = FOLDER
) -> str:
    """A page whose tables are written again from these rows.

    Args:
        page: the text of the page.
        rows: the results.
        recipes: names that a table may have though no row has them yet.
        pictures: folder of the pictures, relative to the page.

    Raises:
        ValueError: a mark has no partner, or names an unknown table or recipe; or the rows have no
            results for a table that has some.

    >>> print(fill("<!-- table summary: begin -->\\n<!-- table summary: end -->", []))
    <!-- table summary: begin -->
    <BLANKLINE>
    No results yet: `python3 -m experiments.table` makes them.
    <BLANKLINE>
    <!-- table summary: end -->
    """
    known = {*recipes, *(row["config"] for row in rows)}

    def write(name: str, before: str) -> str:
        if rows:
            _check_recipes(name, known)
        text = block(name, rows, pictures)
        if text == NONE_YET and before not in ("", NONE_YET):
            raise ValueError(
                f"the table at '<!-- table {name}: begin -->' is filled, but these results have no "
                "row for it: give the folder of its results with --results"
            )
        return text

    return replace_tables(page, write)


def _check_recipes(name: str, known: Collection[str]) -> None:
    for recipe in parse_name(name)[1]:
        if recipe not in known:
            raise ValueError(
                f"'<!-- table {name}: begin' names the recipe {recipe!r}, which is in neither the "
                f"results nor the grid: expected one of {', '.join(map(repr, sorted(known)))}"
            )


def fill_pages(
    pages: Iterable[Path], rows: Sequence[Row], recipes: Collection[str], pictures: Path
) -> dict[Path, str]:
    """The new texts of those pages that exist; writes nothing.

    Args:
        pages: the files.
        rows: the results.
        recipes: as for `fill`.
        pictures: folder of the pictures that the pages link to.

    Raises:
        ValueError: as `fill`; the message names the page.
    """
    filled = {}
    for page in filter(Path.exists, pages):
        try:
            folder = os.path.relpath(pictures, page.parent).replace(os.sep, "/")
            filled[page] = fill(page.read_text(encoding="utf-8"), rows, recipes, folder)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from error
    return filled


def recipes_in_pictures(pages: Iterable[str]) -> list[str] | None:
    """The recipes in the pictures of these pages, empty for all; None if no page has pictures.

    Raises:
        ValueError: the pages show pictures of different recipes, which would share one file.

    >>> page = "<!-- table pictures small: begin -->\\n<!-- table pictures small: end -->"
    >>> recipes_in_pictures([page, page])
    ['small']
    """
    names = dict.fromkeys(name for page in pages for name in table_names(page))
    shown = [name for name in names if parse_name(name)[0] == PICTURES]
    if len(shown) > 1:
        raise ValueError(
            f"the pages show {' and '.join(map(repr, shown))}, but there is one set of pictures: "
            "name the same recipe in all, or report page by page with --pages and --pictures"
        )
    return parse_name(shown[0])[1] if shown else None
