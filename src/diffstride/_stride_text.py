"""Strides as text that explains the sizes of maps: rounding never changes the number of samples."""

from collections.abc import Iterable, Iterator, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from math import isfinite

from diffstride.spectral.axis_plan import ROUNDING, whole

MOST_DIGITS = 9  # that tell two float32 apart


def stride_text(stride: float, size: int | None = None, form: str = ".2f") -> str:
    """A stride in as few digits as explain the size of its map.

    A stride of 1.9999 makes 17 samples of 32, one of 2 makes 16. So 1.9999 is not printed as 2.

    Args:
        stride: at least 1.
        size: length of the axis in samples. The text then stands for a stride that makes the same
            number of samples, ``ceil(size / stride)``: the nearest of so many digits, or else that
            on its other side. Without it a text that is a whole number stands for that number, as
            the size of a map changes there for most lengths.
        form: format with the fewest digits, ``".2f"`` or ``".4g"``.

    >>> stride_text(1.9999), stride_text(2.0), stride_text(1.7321), stride_text(2.0001, 32)
    ('1.9999', '2.00', '1.73', '2.00')
    >>> stride_text(1.9999, form=".4g"), stride_text(1.9999, 32), stride_text(2.133334, 32)
    ('1.9999', '1.99', '2.14')
    """
    if not isfinite(stride):
        return repr(stride)
    for digits in range(int(form[1]), MOST_DIGITS):
        for rounded in _rounded(stride, digits, form[2], other_side=size is not None):
            if _explains(rounded, stride, size):
                return f"{rounded:.{digits}{form[2]}}"
    return repr(stride)


def strides_text(
    strides: Iterable[float], sizes: Sequence[int] = (), form: str = ".2f", between: str = " x "
) -> str:
    """The strides of all axes; ``sizes`` are the lengths of the axes, empty if not known.

    >>> strides_text((1.9999, 2.0), (32, 32)), strides_text((2.0, 1.5), form=".4g", between=", ")
    ('1.99 x 2.00', '2, 1.5')
    """
    values = tuple(strides)
    lengths = sizes if len(sizes) == len(values) else (None,) * len(values)
    return between.join(stride_text(*each, form) for each in zip(values, lengths, strict=True))


def _rounded(stride: float, digits: int, kind: str, other_side: bool) -> Iterator[float]:
    """The nearest number with so many digits, then the neighbours below and above."""
    exact, before_point = Decimal(stride), len(str(int(stride)))
    precision = digits + (before_point if kind == "f" else 0)
    for rounding in (ROUND_HALF_EVEN, *(ROUND_FLOOR, ROUND_CEILING) * other_side):
        yield float(Context(prec=precision, rounding=rounding).create_decimal(exact))


def _explains(rounded: float, stride: float, size: int | None) -> bool:
    if size is not None:
        return rounded >= 1 and whole(size / rounded) == whole(size / stride)
    return rounded % 1 != 0 or abs(rounded - stride) <= ROUNDING * stride
