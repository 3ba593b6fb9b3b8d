"""Tables, arrays, bytes, numbers and durations as text."""

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned columns of text; the first row is underlined."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def cut(text: str, length: int = 60) -> str:
    """A text on one line, cut to at most `length` characters, with `…` where it was cut."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}…"


def printable(text: str, length: int | None = None) -> str:
    """A text of any origin for a terminal, with the characters that a terminal obeys, such as escape, written out.

    length: it is put on one line and cut to so many characters before that.
    """
    return "".join(
        each if each.isprintable() else ascii(each)[1:-1] for each in (cut(text, length) if length else text)
    )


def array_type(array: Any) -> str:
    """Dtype and shape of an array, e.g. `bfloat16[8,4]`. Checkpoints hold this text, so it must not change."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def size(count: float) -> str:
    """A number of bytes with its unit, e.g. `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def number(value: float) -> str:
    """A number with four significant digits; without an exponent from 0.0001 to a billion, e.g. `0.4123`, `12346`."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """The two largest units of `seconds`, e.g. `9s`, `1m10s`, `2h05m`, `3d04h`."""
    whole = round(seconds)
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{small}"
    return f"{whole}s"
