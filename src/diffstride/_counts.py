"""Numbers of things in messages."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, which is in the singular for 1.

    >>> counted(1, "epoch"), counted(0, "epoch"), counted(1200, "axis", "axes")
    ('1 epoch', '0 epochs', '1,200 axes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
