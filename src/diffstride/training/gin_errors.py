"""Errors of Gin as one line that says what to write instead."""

import difflib
import re
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffstride._wording import suggest
from diffstride.training import gin_registry
from diffstride.training.argument_types import shorten
from diffstride.training.gin_compat import bound_values, macros_defined, macros_used
from diffstride.training.published_gin import PublishedNamesError

LONGEST = 2000  # characters of an error
BINDING = re.compile(r"\s*([\w./]+)\s*=\s*(.*?)\s*(?:#.*)?$")
BINDING_LINE = re.compile(r"\s*In bindings string line \d+\n.*")  # and the line itself
MOST_MEANT = 4  # settings of one last name that an error suggests
UNPARSED = ("Failed to parse token", "Unable to parse value")  # of values without quotes or @


class BindingError(ValueError):
    """Gin refuses a binding of the command line; its cause says why."""

    def __init__(self, binding: str) -> None:
        super().__init__(f"--gin_bindings={shorten(binding)}")


def check_macros(binding: str) -> None:
    """Refuse a binding of the command line that defines a macro to which nothing refers.

    Gin takes a setting without its function, such as ``num_epochs = 1``, for a new macro. Call this
    after all files and bindings have been parsed.

    Raises:
        BindingError: there is such a macro.
    """
    used = macros_used()
    for name in macros_defined(binding):
        if name not in used:
            raise BindingError(binding) from ValueError(_sets_nothing(name, used))


def check_macros_of_file(path: str) -> None:
    """Refuse a file with a setting without its function, such as ``num_epochs = 1``.

    That is a macro to which nothing refers, with the name of an argument. Other macros may wait for
    a file that includes this one. Call this after all files and bindings have been parsed.

    Raises:
        ValueError: there is such a macro.
    """
    used, arguments = macros_used(), _arguments()
    for name in macros_defined(Path(path).read_text(encoding="utf-8")):
        if name not in used and name.rpartition("/")[2] in arguments:
            raise ValueError(f"{path}: {_sets_nothing(name)}")


def _sets_nothing(name: str, macros: Iterable[str] = ()) -> str:
    """The error of a macro that nothing uses, with the macro or setting that is like it."""
    why = f"{name!r} names no setting, and nothing refers to %{name}"
    return why + suggest_setting(name, macros)


def _arguments() -> set[str]:
    """The names of the arguments of all functions that Gin knows."""
    return {each for arguments in gin_registry.NAMES.values() for each in arguments}


def suggest_setting(name: str, macros: Iterable[str] = ()) -> str:
    """The end of an error about a name without a function: the macro or setting that is like it.

    >>> suggest_setting("budgte")
    "; did you mean 'train.train.budget'?"
    >>> suggest_setting("1")
    '; write the function in front, as in train.train.num_epochs = 1'
    """
    if meant := suggest(name, sorted(macros)):
        return meant
    for close in difflib.get_close_matches(name.rpartition("/")[2], sorted(_arguments()), n=1):
        return _did_you_mean(_settings(close))
    return "; write the function in front, as in train.train.num_epochs = 1"


def explain(error: BaseException) -> str:
    """An error as one line, with a suggestion for a misspelt name.

    The error of published names has several lines.

    >>> from diffstride.training.command_line import configure
    >>> try:
    ...     configure([], ["resnet.resnet81.strides = None"])
    ... except ValueError as error:
    ...     print(explain(error))  # doctest: +ELLIPSIS
    --gin_bindings='resnet.resnet81.strides = None': No...did you mean 'resnet.resnet18.strides'?
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
    suggestion = _suggest_name(str(error))
    text = text.rstrip(".") if suggestion else text
    return (text if len(text) <= LONGEST else f"{text[:LONGEST]}…") + suggestion


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
    """The end of an error about an unknown name; ``message`` is that of Gin, with the line."""
    # Names may lack their first words, both in Gin's messages and in what users write.
    if match := re.search(r"matching (?:reference )?'@?([^']+?)(?:\(\))?'", message):
        return _suggest_owner(match[1], _argument(match[1], message))
    if match := re.search(r"Ambiguous selector '([^']+)', matches \[([^]]*)\]", message):
        bound = _argument(match[1], message)
        names = sorted(re.findall(r"'([^']+)'", match[2]))
        return _did_you_mean([f"{name}.{bound}" if bound else name for name in names])
    if match := re.search(r"'([^']+)' doesn't have a parameter named '([^']+)'", message):
        for name, arguments in gin_registry.NAMES.items():
            if f".{name}".endswith(f".{match[1]}"):
                return _suggest_argument(match[2], arguments)
    return ""


def _argument(owner: str, message: str) -> str:
    """The argument that a line in ``message`` binds of ``owner``; empty where there is none."""
    bound = re.search(rf"(?<![\w.@]){re.escape(owner)}\.(\w+)\s*=", message)
    return bound[1] if bound else ""


def _suggest_owner(name: str, argument: str) -> str:
    """For an unknown function or class; ``argument`` is what was bound of it, or empty."""
    names = {each.rpartition(".")[2]: each for each in gin_registry.NAMES}
    names |= {each: each for each in gin_registry.NAMES}
    for close in difflib.get_close_matches(name, names, n=1):
        if argument in gin_registry.NAMES[names[close]]:
            return f"; did you mean '{names[close]}.{argument}'?"
        return f"; did you mean {close!r}?"
    if argument and (settings := _settings(argument)):
        return _did_you_mean(settings)
    return f"; the names of this program are {', '.join(_own())}"


def _settings(argument: str) -> list[str]:
    """The settings of this last name; those of functions that have bindings, if there are any."""
    owners = [name for name, arguments in gin_registry.NAMES.items() if argument in arguments]
    bound = {name for name, _, _ in bound_values()}
    found = [owner for owner in owners if owner in bound] or owners
    return [f"{owner}.{argument}" for owner in found]


def _did_you_mean(settings: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, settings[:MOST_MEANT]))}?"


def _own() -> list[str]:
    return [name for name in gin_registry.NAMES if not name.startswith("torch")]


def _suggest_argument(argument: str, known: Any) -> str:
    """The closest argument, also one that begins with the same word; or else all of them."""
    starts = [name for name in known if name.startswith(f"{argument}_")]
    close = f"; did you mean {starts[0]!r}?" if len(starts) == 1 else suggest(argument, known)
    return close or f"; its parameters are {', '.join(known)}"
