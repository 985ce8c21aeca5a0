"""Parts of pages that are written by a program, between marks that say which."""

from pathlib import Path

from benchmarks.common import write_text


def with_part(page: str, name: str, text: str) -> str:
    """A page with its part of that name replaced.

    >>> page = "# A\\n<!-- begin sum, by add.py -->\\n\\n1\\n\\n<!-- end sum -->\\nend\\n"
    >>> print(with_part(page, "sum", "2"))
    # A
    <!-- begin sum, by add.py -->
    <BLANKLINE>
    2
    <BLANKLINE>
    <!-- end sum -->
    end
    <BLANKLINE>
    """
    head, begin, rest = page.partition(f"<!-- begin {name},")
    mark, newline, rest = rest.partition("\n")
    _, end, tail = rest.partition(f"<!-- end {name} -->")
    if not end:
        raise ValueError(
            f"the page has no part between <!-- begin {name}, … and <!-- end {name} -->"
        )
    return f"{head}{begin}{mark}{newline}\n{text}\n\n{end}{tail}"


def write_part(path: Path, name: str, text: str) -> None:
    """Replace a part of a file, whole or not at all."""
    write_text(path, with_part(path.read_text(encoding="utf-8"), name, text))
