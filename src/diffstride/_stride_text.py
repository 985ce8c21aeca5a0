"""Strides as text that explains the sizes of maps: rounding never changes the number of samples."""

from collections.abc import Iterable, Sequence

from diffstride.spectral.axis_plan import ROUNDING, whole

MOST_DIGITS = 9  # that tell two float32 apart


def stride_text(stride: float, size: int | None = None, form: str = ".2f") -> str:
    """A stride in as few digits as explain the size of its map.

    A stride of 1.9999 makes 17 samples of 32, one of 2 makes 16. So 1.9999 is not printed as 2.

    Args:
        stride: at least 1.
        size: length of the axis in samples. The text then stands for a stride that makes the same
            number of samples, ``ceil(size / stride)``. Without it a text that is a whole number
            stands for that number, as the size of a map changes there for most lengths.
        form: format with the fewest digits, ``".2f"`` or ``".4g"``.

    >>> stride_text(1.9999), stride_text(2.0), stride_text(1.7321), stride_text(2.0001, 32)
    ('1.9999', '2.00', '1.73', '2.00')
    >>> stride_text(1.9999, form=".4g"), stride_text(1.7776, 32), stride_text(1.7779, 32)
    ('1.9999', '1.7776', '1.78')
    """
    for digits in range(int(form[1]), MOST_DIGITS):
        text = f"{stride:.{digits}{form[2]}}"
        if _explains(float(text), stride, size):
            return text
    return repr(stride)


def strides_text(
    strides: Iterable[float], sizes: Sequence[int] = (), form: str = ".2f", between: str = " x "
) -> str:
    """The strides of all axes; ``sizes`` are the lengths of the axes, empty if not known.

    >>> strides_text((1.9999, 2.0), (32, 32)), strides_text((2.0, 1.5), form=".4g", between=", ")
    ('1.9999 x 2.00', '2, 1.5')
    """
    values = tuple(strides)
    lengths = sizes if len(sizes) == len(values) else (None,) * len(values)
    return between.join(stride_text(*each, form) for each in zip(values, lengths, strict=True))


def _explains(rounded: float, stride: float, size: int | None) -> bool:
    if size is not None:
        return rounded >= 1 and whole(size / rounded) == whole(size / stride)
    return rounded % 1 != 0 or abs(rounded - stride) <= ROUNDING * stride
