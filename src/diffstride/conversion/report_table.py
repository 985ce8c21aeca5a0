"""The report of a network: rows to read by a program, as a text table and as HTML."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from diffstride._stride_text import strides_text
from diffstride.conversion.record import level

UNKNOWN = "?"
HEADINGS = ("module", "strides", "was", "pooled", "map", "MACs", "before")
NUMBERS = 2  # columns of numbers at the end, which are aligned at the right
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class ReportRow(NamedTuple):
    """One module with a pooling layer, or one such layer on its own.

    Attributes:
        module: its name.
        strides: those of its layer, one per axis.
        old_strides: the stride of the module before conversion; empty for a layer on its own.
        placement: where the module is pooled, ``"before"``, ``"after"`` or ``"on top"``.
        shared: whether its layer is that of the row above.
        pinned: the axes along which the layer returns maps of one length, whatever comes in.
        map_size, pooled_size: the size of the map that is pooled, and of the result; empty if they
            are not known or the layer is shared.
        multiply_adds: for one sample, of the module and its pooling; None if not known. Pooling by
            a shared layer counts in its first row, and a module with several layers in its own.
        multiply_adds_before: those of the module before conversion, in its first row; None for a
            layer on its own.
    """

    module: str
    strides: tuple[float, ...]
    old_strides: tuple[int, ...] = ()
    placement: str = ""
    shared: bool = False
    pinned: tuple[int, ...] = ()
    map_size: tuple[int, ...] = ()
    pooled_size: tuple[int, ...] = ()
    multiply_adds: int | None = None
    multiply_adds_before: int | None = None


@dataclass(frozen=True)
class Report:
    """What `diffstride.report` returns: print it, iterate over its rows, or show it in a notebook.

    Attributes:
        rows: the modules with pooling layers.
        multiply_adds: of the network for one sample; None if not known.
        multiply_adds_before: before conversion; None if it was not converted.
        by_module: multiply-adds for each module, those of the modules inside included.
        costliest: the module, with none inside but its pooling layer, that costs most; empty if not
            known.
        left_out: the reason for each module that strides and was not converted.
        mirrors: for each module that enlarges, the strided modules whose input size it returns.
        unknown: why the multiply-adds are not known; empty if they are.
    """

    rows: tuple[ReportRow, ...]
    multiply_adds: int | None
    multiply_adds_before: int | None = None
    by_module: Mapping[str, int] = field(default_factory=dict)
    costliest: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    mirrors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unknown: str = ""

    def __iter__(self) -> Iterator[ReportRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        table = [*_aligned([HEADINGS, *self._cells()])] if self.rows else [self.tree()]
        return "\n".join([*table, *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [f"<tr>{_html_cells('th', HEADINGS)}</tr>"]
        rows += [f"<tr>{_html_cells('td', cells)}</tr>" for cells in self._cells()]
        notes = "<br>".join(map(escape, self._notes()))
        table = f"<table>{''.join(rows)}</table>" if self.rows else f"<pre>{self.tree()}</pre>"
        return f"{table}<p>{notes}</p>"

    def tree(self, depth: int = 2) -> str:
        """A text table of the multiply-adds by module, modules indented below those around them.

        Args:
            depth: how many levels of modules to show.
        """
        shown = [name for name in self.by_module if 0 < level(name) <= depth]
        rows = [("module", "MACs", "share")]
        rows += [(self._indented(name), *self._cost_and_share(name)) for name in shown]
        rows.append(("whole network", short(self.multiply_adds), ""))
        return "\n".join(_aligned(rows))

    def _indented(self, name: str) -> str:
        return "  " * (level(name) - 1) + name.rpartition(".")[2]

    def _cost_and_share(self, name: str) -> tuple[str, str]:
        cost = self.by_module[name]
        return short(cost), f"{cost / self.multiply_adds:.0%}" if self.multiply_adds else UNKNOWN

    def _cells(self) -> list[Sequence[str]]:
        cells: list[Sequence[str]] = [_row_cells(row) for row in self.rows]
        before = "" if self.multiply_adds_before is None else short(self.multiply_adds_before)
        return [*cells, ("whole network", "", "", "", "", short(self.multiply_adds), before)]

    def _notes(self) -> list[str]:
        notes = [f"MACs are not known: {self.unknown}"] if self.unknown else []
        if self.costliest:
            cost, share = self._cost_and_share(self.costliest)
            notes.append(f"costliest module: {self.costliest} ({cost}, {share})")
        notes += [
            f"{name}: enlarges to the size that enters {', '.join(mirrored)}"
            for name, mirrored in self.mirrors.items()
        ]
        if self.left_out:
            notes.append("left out:")
            notes += [f"  {name}: {reason}" for name, reason in self.left_out.items()]
        return notes


def short(multiply_adds: int | None) -> str:
    """A number of multiply-adds in thousands, millions or billions; "?" for None.

    >>> short(999), short(344_064), short(34_996_224), short(1_814_000_000)
    ('999', '344 k', '35.0 M', '1.81 G')
    """
    if multiply_adds is None:
        return UNKNOWN
    for factor, unit in UNITS:
        if multiply_adds >= 0.9995 * factor:
            value = multiply_adds / factor
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return str(multiply_adds)


def _row_cells(row: ReportRow) -> Sequence[str]:
    strides = "  same" if row.shared else _strides_text(row)
    sizes = f"{_times(row.map_size)} -> {_times(row.pooled_size)}" if row.map_size else UNKNOWN
    before = "" if row.multiply_adds_before is None else short(row.multiply_adds_before)
    return (
        row.module,
        strides,
        _times(row.old_strides),
        row.placement,
        "" if row.shared else sizes,
        short(row.multiply_adds),
        before,
    )


def _strides_text(row: ReportRow) -> str:
    """The strides of a row, without those of axes that are pinned."""
    texts = strides_text(row.strides, row.map_size, between="\n").split("\n")
    texts = ["pinned" if i in row.pinned else text for i, text in enumerate(texts)]
    return texts[0] if set(texts) == {"pinned"} else " x ".join(texts)


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * (len(widths) - NUMBERS) + [str.rjust] * NUMBERS
    lines = [zip(sides, row, widths, strict=True) for row in rows]
    return ["  ".join(side(text, width) for side, text, width in line).rstrip() for line in lines]


def _html_cells(tag: str, cells: Sequence[str]) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
