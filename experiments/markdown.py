"""Markdown: tables, and pages with tables between ``<!-- table NAME: begin -->`` and ``end``."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from diffstride._files import atomic_file

TABLE = re.compile(
    r"(?P<begin>^<!-- table (?P<name>[^:>]+): begin[^>]*-->\n)(?P<body>.*?)"
    r"(?P<end>^<!-- table (?P=name): end -->)",
    re.DOTALL | re.MULTILINE,
)
WIDEST = 8  # columns that fit a page
MARK = re.compile(r"^<!-- table .*", re.MULTILINE)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], align: str = "---") -> str:
    """A Markdown table; ``align="---:"`` aligns its columns to the right.

    >>> print(table(["pooling", "%"], [["max", 87.1]]))
    | pooling | % |
    | --- | --- |
    | max | 87.1 |
    """
    lines = [header, [align] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def split_table(
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    keys: int = 1,
    widest: int = WIDEST,
    align: str = "---",
) -> str:
    """A table that fits a page: one of many columns becomes several, one below the other.

    Args:
        header: names of the columns.
        rows: cells of each row.
        keys: number of first columns that each table repeats.
        widest: most columns of a table.
        align: as for `table`.

    >>> print(split_table(["network", "a", "b", "c"], [["net", 1, 2, 3]], widest=3))
    | network | a | b |
    | --- | --- | --- |
    | net | 1 | 2 |
    <BLANKLINE>
    | network | c |
    | --- | --- |
    | net | 3 |
    """
    lines = list(rows)
    parts = -(-(len(header) - keys) // (widest - keys))
    size = -(-(len(header) - keys) // parts)
    tables = []
    for start in range(keys, len(header), size):
        chosen = [*range(keys), *range(start, min(start + size, len(header)))]
        cells = [[line[each] for each in chosen] for line in lines]
        tables.append(table([header[each] for each in chosen], cells, align))
    return "\n\n".join(tables)


def table_names(page: str) -> list[str]:
    """The names of the tables of a page."""
    return [found["name"] for found in TABLE.finditer(page)]


def replace_tables(page: str, write: Callable[[str, str], str]) -> str:
    """A page with new text between the marks of each table.

    Args:
        page: the text of the page.
        write: returns the new text of a table, given its name and its present text.

    Raises:
        ValueError: a mark has no partner.

    >>> page = "# A\\n<!-- table sum: begin (by add.py) -->\\n1\\n<!-- table sum: end -->\\n"
    >>> print(replace_tables(page, lambda name, text: f"{text} + 1"), end="")
    # A
    <!-- table sum: begin (by add.py) -->
    <BLANKLINE>
    1 + 1
    <BLANKLINE>
    <!-- table sum: end -->
    """
    _check_marks(page)

    def replaced(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{write(found['name'], found['body'].strip())}\n\n{found['end']}"

    return TABLE.sub(replaced, page)


def write_table(path: Path, name: str, text: str) -> None:
    """Replace one table of the page at ``path``."""
    page = with_table(path.read_text(encoding="utf-8"), name, text)
    with atomic_file(path) as file:
        file.write(page.encode())


def with_table(page: str, name: str, text: str) -> str:
    """Replace the text between the marks of one table of a page; returns the new page.

    Raises:
        ValueError: the page has no table of that name.
    """
    if name not in table_names(page):
        raise ValueError(
            f"the page has no table {name!r}: expected '<!-- table {name}: begin -->' and below it "
            f"'<!-- table {name}: end -->'"
        )
    return replace_tables(page, lambda other, old: text if other == name else old)


def _check_marks(page: str) -> None:
    rest = [TABLE.sub("", page), *(found["body"] for found in TABLE.finditer(page))]
    if stray := MARK.search("\n".join(rest)):
        raise ValueError(
            f"{stray[0]!r} has no partner: expected '<!-- table NAME: begin -->' and below it "
            "'<!-- table NAME: end -->' with the same NAME"
        )
