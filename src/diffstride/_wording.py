"""Numbers of things, misspelt names and errors of others, in messages."""

from collections.abc import Sequence
from difflib import get_close_matches


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, which is in the singular for 1.

    >>> counted(1, "epoch"), counted(0, "epoch"), counted(1200, "axis", "axes")
    ('1 epoch', '0 epochs', '1,200 axes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def suggest(name: str, known: Sequence[str]) -> str:
    """The end of an error about a misspelt name; empty if no known name is like it.

    >>> suggest("workdri", ["workdir", "seed"]), suggest("x", ["workdir"])
    ("; did you mean 'workdir'?", '')
    """
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its class if it says nothing.

    >>> first_line(OSError("no such file\\nhint")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


def one_line(error: Exception, most: int = 200) -> str:
    """The first characters of what an error says, without line breaks.

    >>> one_line(ValueError("a size\\n    of 0"), most=8)
    'a size o'
    """
    return " ".join(str(error).split())[:most]
