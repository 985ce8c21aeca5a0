"""What Markdown and griffe, which reads the docstrings, make no sense of in ours: an extension."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from griffe import Extension, Object

FLAGS = re.compile(r"\s*# doctest: .*$")
TOGETHER = re.compile(r"( +)(\w+(?:, \w+)+): (.*)")  # a line on several arguments


class Docstrings(Extension):
    """Fences examples, and describes arguments that share a description one by one."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            lines = separated(obj.docstring.value.splitlines())
            obj.docstring.value = "\n".join(fenced(lines))


def fenced(lines: Sequence[str]) -> Iterator[str]:
    """The lines of a docstring, with fences from each first prompt to the blank line after it.

    In Markdown a line that begins with ``>>>`` is a quotation, three levels deep, and the second
    colon before a block is not swallowed.
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


def separated(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring, with ``a, b: text`` as ``a: text`` and ``b: text``.

    griffe would look for an argument called ``a, b``, and find neither type nor default.
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
