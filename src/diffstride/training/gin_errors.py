"""Errors of Gin as one line that says what to write instead."""

import difflib
import re
import tokenize
from collections.abc import Sequence
from typing import Any

from diffstride.training import gin_registry
from diffstride.training.published_gin import PublishedNamesError

LONGEST = 2000  # characters of an error
BINDING = re.compile(r"\s*([\w./]+)\s*=\s*(.*?)\s*(?:#.*)?$")
UNPARSED = ("Failed to parse token", "Unable to parse value")  # of values without quotes or @


def explain(error: BaseException) -> str:
    """An error as one line, with a suggestion for a misspelt name.

    The error of published names has several lines.

    >>> from diffstride.training.command_line import configure
    >>> try:
    ...     configure([], ["resnet.resnet81.strides = None"])
    ... except ValueError as error:
    ...     print(explain(error))  # doctest: +ELLIPSIS
    No configurable matching 'resnet.resnet81'...; did you mean 'resnet.resnet18'?
    """
    if isinstance(error, PublishedNamesError):
        return str(error)
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    message, _, _ = message.partition(" in config string:")  # then follows the configuration
    lines = [line.strip(" ^") for line in message.splitlines()]
    # Gin adds the calls that led to the error, with addresses in memory.
    kept = [line for line in lines if line and not line.startswith("In call to configurable")]
    text = _explain_syntax(error) or " ".join(kept or [type(error).__name__])
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]}…") + _suggest_name(message)


def suggest(name: str, known: Sequence[str]) -> str:
    """The end of an error about a misspelt name; empty if no known name is like it.

    >>> suggest("workdri", ["workdir", "seed"]), suggest("x", ["workdir"])
    ("; did you mean 'workdir'?", '')
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _explain_syntax(error: BaseException) -> str:
    """What is wrong with a line that Gin cannot parse; empty for other errors."""
    if isinstance(error, tokenize.TokenError):
        return "a bracket or a quote is opened and not closed: close it, or check the line before"
    line = getattr(error, "text", None)
    if not isinstance(error, SyntaxError) or not line:
        return ""
    where = f" (line {error.lineno}{f' of {error.filename}' if error.filename else ''})"
    binding = BINDING.match(line)
    if any(words in str(error) for words in UNPARSED):
        name, value = binding.groups() if binding else ("", line.strip())
        return f"{f'{name} = '.lstrip(' =')}{value}{where}: {_advise(value)}"
    if "expected ':' or '='" in str(error):
        return f"{line.strip()}{where}: expected ':' or '=': write NAME = VALUE"
    return ""


def _advise(value: str) -> str:
    if found := gin_registry.references(value):
        return f"a function or class needs @: write {' or '.join(found)}"
    if value in ("true", "false", "none", "null"):
        return f"write {'None' if value in ('none', 'null') else value.title()}"
    quoted = f"'{value}'"
    return (
        f"{value} is no value: write text in quotes, as {quoted}, and the name of a function or "
        "class with @, as @pooling.DiffStride"
    )


def _suggest_name(message: str) -> str:
    # Names may lack their first words, both in Gin's messages and in what users write.
    if match := re.search(r"matching (?:reference )?'@?([^']+?)(?:\(\))?'", message):
        names = [*gin_registry.NAMES, *(name.rpartition(".")[2] for name in gin_registry.NAMES)]
        return suggest(match[1], names) or f"; the names of this program are {', '.join(_own())}"
    if match := re.search(r"'([^']+)' doesn't have a parameter named '([^']+)'", message):
        for name, arguments in gin_registry.NAMES.items():
            if f".{name}".endswith(f".{match[1]}"):
                return _suggest_argument(match[2], arguments)
    return ""


def _own() -> list[str]:
    return [name for name in gin_registry.NAMES if not name.startswith("torch")]


def _suggest_argument(argument: str, known: Any) -> str:
    """The closest argument, also one that begins with the same word; or else all of them."""
    starts = [name for name in known if name.startswith(f"{argument}_")]
    close = f"; did you mean {starts[0]!r}?" if len(starts) == 1 else suggest(argument, known)
    return close or f"; its parameters are {', '.join(known)}"
