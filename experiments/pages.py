"""Pages with places for tables, between ``<!-- table NAME: begin -->`` and ``end``."""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from experiments.markdown_tables import NONE_YET, PICTURES, block, parse_name
from experiments.pictures import FOLDER
from experiments.result_rows import Row

PLACE = re.compile(
    r"(?P<begin>^<!-- table (?P<name>[^:>]+): begin[^>]*-->\n)(?P<body>.*?)"
    r"(?P<end>^<!-- table (?P=name): end -->)",
    re.DOTALL | re.MULTILINE,
)
MARK = re.compile(r"^<!-- table .*", re.MULTILINE)


def fill(
    page: str, rows: Sequence[Row], recipes: Collection[str] = (), pictures: str = FOLDER
) -> str:
    """A page with its tables made anew.

    Args:
        page: the text.
        rows: what the tables are of.
        recipes: names that may stand in a page though no row has them yet.
        pictures: folder of the pictures, as seen from the page.

    Raises:
        ValueError: a mark has no partner, names an unknown table or recipe, or a table that is
            there would be lost, since the rows have nothing for it.

    >>> print(fill("<!-- table summary: begin -->\\n<!-- table summary: end -->", []))
    <!-- table summary: begin -->
    <BLANKLINE>
    No results yet: `python3 -m experiments.table` makes them.
    <BLANKLINE>
    <!-- table summary: end -->
    """
    known = {*recipes, *(row["config"] for row in rows)}

    def made(found: re.Match[str]) -> str:
        if rows:
            _check_recipes(found["name"], known)
        text = block(found["name"], rows, pictures)
        if text == NONE_YET and found["body"].strip() not in ("", NONE_YET):
            raise ValueError(
                f"the table at {found['begin'].strip()!r} is filled, but these results have no row "
                "for it: report from the folder of results that it was made of"
            )
        return f"{found['begin']}\n{text}\n\n{found['end']}"

    _check_marks(page)
    return PLACE.sub(made, page)


def _check_marks(page: str) -> None:
    rest = [PLACE.sub("", page), *(found["body"] for found in PLACE.finditer(page))]
    if stray := MARK.search("\n".join(rest)):
        raise ValueError(
            f"{stray[0]!r} has no partner: expected '<!-- table NAME: begin -->' and below it "
            "'<!-- table NAME: end -->', of one NAME"
        )


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
    """The texts of those pages that exist, with their tables made anew; nothing is written.

    ``pictures`` is the folder of the pictures, to which the pages link.

    Raises:
        ValueError: as `fill` does; names the page.
    """
    filled = {}
    for page in filter(Path.exists, pages):
        try:
            folder = os.path.relpath(pictures, page.parent).replace(os.sep, "/")
            filled[page] = fill(page.read_text(encoding="utf-8"), rows, recipes, folder)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from error
    return filled


def pictured(pages: Iterable[str]) -> list[Sequence[str]]:
    """The recipes of the pictures that these texts show: none, or those of one set of pictures.

    Raises:
        ValueError: they show pictures of several, which would have the same files.

    >>> page = "<!-- table pictures small: begin -->\\n<!-- table pictures small: end -->"
    >>> pictured([page, page])
    [['small']]
    """
    names = dict.fromkeys(found["name"] for page in pages for found in PLACE.finditer(page))
    shown = [name for name in names if parse_name(name)[0] == PICTURES]
    if len(shown) > 1:
        raise ValueError(
            f"the pages show {' and '.join(map(repr, shown))}, but there is one set of pictures: "
            "name the same recipe in all, or report page by page with --pages and --pictures"
        )
    return [parse_name(name)[1] for name in shown]
