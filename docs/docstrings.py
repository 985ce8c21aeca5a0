"""An extension of griffe that adapts our docstrings to Markdown and to its argument lists."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from griffe import Extension, Object

FLAGS = re.compile(r"\s*# doctest: .*$")
TOGETHER = re.compile(r"( +)(\w+(?:, \w+)+): (.*)")  # a line that describes several arguments


class Docstrings(Extension):
    """Adds fences to examples, and gives each argument a description of its own."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            lines = split_arguments(obj.docstring.value.splitlines())
            obj.docstring.value = "\n".join(fence_examples(lines))


def fence_examples(lines: Sequence[str]) -> Iterator[str]:
    """Add fences to the examples of a docstring, from a first prompt to the next blank line.

    Markdown would read a line with ``>>>`` as a quotation in three levels. It would also show both
    colons of ``::`` before a block.
    """
    margin: str | None = None
    for line in lines:
        text = line.lstrip()
        if margin is None and text.startswith(">>> "):
            margin = line[: len(line) - len(text)]
            yield f"{margin}```pycon"
        elif margin is not None and not text:
            yield f"{margin}```"
            margin = None
        yield FLAGS.sub("", line) if margin is not None else re.sub("::$", ":", line)
    if margin is not None:
        yield f"{margin}```"


def split_arguments(lines: Sequence[str]) -> list[str]:
    """Write ``a, b: text`` in a docstring as ``a: text`` and ``b: text``.

    griffe would look for one argument with the name ``a, b``, and find neither type nor default.
    """
    result, rest = [], list(lines)
    while rest:
        match = TOGETHER.fullmatch(rest[0])
        if not match:
            result.append(rest.pop(0))
            continue
        margin, names, text = match.groups()
        goes_on = takewhile(lambda line, deeper=f"{margin} ": line.startswith(deeper), rest[1:])
        description = [text, *goes_on]
        for name in names.split(", "):
            result += [f"{margin}{name}: {text}", *description[1:]]
        del rest[: len(description)]
    return result
