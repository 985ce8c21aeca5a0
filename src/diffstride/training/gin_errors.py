"""Errors of Gin as one line that says what to write instead."""

import difflib
import re
import tokenize
from collections.abc import Sequence
from typing import Any

from diffstride.training import gin_registry
from diffstride.training.argument_types import shorten
from diffstride.training.published_gin import PublishedNamesError

LONGEST = 2000  # characters of an error
BINDING = re.compile(r"\s*([\w./]+)\s*=\s*(.*?)\s*(?:#.*)?$")
BINDING_LINE = re.compile(r"\s*In bindings string line \d+\n.*")  # and the line itself
UNPARSED = ("Failed to parse token", "Unable to parse value")  # of values without quotes or @


class BindingError(ValueError):
    """Gin refuses a binding of the command line; its cause says why."""

    def __init__(self, binding: str) -> None:
        super().__init__(f"--gin_bindings={shorten(binding)}")


def explain(error: BaseException) -> str:
    """An error as one line, with a suggestion for a misspelt name.

    The error of published names has several lines.

    >>> from diffstride.training.command_line import configure
    >>> try:
    ...     configure([], ["resnet.resnet81.strides = None"])
    ... except ValueError as error:
    ...     print(explain(error))  # doctest: +ELLIPSIS
    --gin_bindings='resnet.resnet81.strides = None': No configurable matching...'resnet.resnet18'?
    """
    if isinstance(error, PublishedNamesError):
        return str(error)
    if isinstance(error, BindingError) and error.__cause__ is not None:
        return f"{error}: {explain(error.__cause__)}"
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    message, _, _ = message.partition(" in config string:")  # then follows the configuration
    message = BINDING_LINE.sub("", message)  # the flag is named instead
    lines = [line.strip(" ^") for line in message.splitlines()]
    # Gin adds the calls that led to the error, with addresses in memory.
    kept = [line for line in lines if line and not line.startswith("In call to configurable")]
    text = _explain_syntax(error) or " ".join(kept or [type(error).__name__])
    suggestion = _suggest_name(message)
    text = text.rstrip(".") if suggestion else text
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]}…") + suggestion


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
    if not isinstance(error, SyntaxError):
        return ""
    line = (error.text or "").strip()
    where = f" (line {error.lineno}{f' of {error.filename}' if error.filename else ''}): "
    # The only line of a binding of the command line is named already.
    head = "" if not error.filename and error.lineno == 1 else f"{line}{where}"
    binding = BINDING.match(line)
    if line and any(words in str(error) for words in UNPARSED):
        return head + _advise(binding[2] if binding else line)
    if "expected ':' or '='" in str(error):
        return f"{head}expected ':' or '=': write NAME = VALUE"
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
