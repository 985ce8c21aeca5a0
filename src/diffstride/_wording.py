"""Numbers of things, and errors of others, in messages."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, which is in the singular for 1.

    >>> counted(1, "epoch"), counted(0, "epoch"), counted(1200, "axis", "axes")
    ('1 epoch', '0 epochs', '1,200 axes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def one_line(error: Exception, most: int = 200) -> str:
    """The first characters of what an error says, without line breaks.

    >>> one_line(ValueError("a size\\n    of 0"), most=8)
    'a size o'
    """
    return " ".join(str(error).split())[:most]
