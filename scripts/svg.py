"""Pictures as SVG that are legible on light and on dark pages: grey words outside of boxes, white or dark ones inside.

Not here: what is drawn (pictures.py).
"""

import html
from collections.abc import Iterable, Sequence

GREY = "#717b86"
"""A contrast of at least 4 on white and on a dark page."""
COLOURS = ("#2f6fb3", "#b3591f", "#2e7d4f", "#8a4aa0", "#a8324a", "#1f7a7a", "#7a6a1f", "#5b5fc7")
"""White words are legible on each."""
SANS = "-apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


class Drawing:
    """Shapes in the order in which they were drawn. Lengths are pixels from the top left corner."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.width, self.height, self.title, self.description = width, height, title, description
        self.shapes: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 13,
        colour: str = GREY,
        anchor: str = "middle",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """Words on a base line at y."""
        style = ' font-weight="bold"' * bold + f' font-family="{MONO}"' * mono
        place = f'x="{number(x)}" y="{number(y)}" font-size="{number(size)}"'
        self.shapes.append(f'<text {place} fill="{colour}" text-anchor="{anchor}"{style}>{html.escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, rounded: float = 0) -> None:
        """A filled rectangle."""
        place = " ".join(
            f'{name}="{number(v)}"'
            for name, v in zip(("x", "y", "width", "height"), (x, y, width, height), strict=True)
        )
        self.shapes.append(f'<rect {place} fill="{colour}"' + f' rx="{number(rounded)}"' * bool(rounded) + "/>")

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        """A filled circle."""
        self.shapes.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" fill="{colour}"/>')

    def line(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A thin grey line."""
        self.shapes.append(
            f'<path d="M{number(x)} {number(y)} L{number(to_x)} {number(to_y)}" stroke="{GREY}" opacity="0.5"/>'
        )

    def chip(self, x: float, y: float, words: str, colour: str) -> None:
        """A small rounded square with words."""
        self.box(x, y, 18, 18, colour, rounded=4)
        self.text(x + 9, y + 13.5, words, size=12, colour="#ffffff")

    def part(self, x: float, y: float, width: float, height: float, devices: Sequence[int]) -> None:
        """A part of an array: in the colour of its device, or grey with a chip for each that has it."""
        self.box(x + 0.75, y + 0.75, width - 1.5, height - 1.5, COLOURS[devices[0]] if len(devices) == 1 else "#c3cbd4")
        if len(devices) == 1:
            return self.text(x + width / 2, y + height / 2 + 4.5, str(devices[0]), colour="#ffffff")
        columns = min(len(devices), 4, int((width - 2) // 20))
        rows = -(-len(devices) // columns)
        for place, device in enumerate(devices):
            row, column = divmod(place, columns)
            left, top = x + width / 2 - 11 * columns + 2, y + height / 2 - 11 * rows + 2
            self.chip(left + 22 * column, top + 22 * row, str(device), COLOURS[device])
        return None

    def spans(
        self,
        x: float,
        y: float,
        scale: float,
        shown: float,
        spans: Iterable[tuple[float, float]],
        colour: str,
        empty: str,
    ) -> None:
        """Spans of seconds on an axis of `shown` milliseconds, `scale` pixels each, on a bar that stands for idling."""
        self.box(x, y, scale * shown, 26, empty)
        for start, end in spans:
            first, last = max(0.0, 1000 * start), min(shown, 1000 * end)
            if last > first:
                self.box(x + scale * first, y, max(1.0, scale * (last - first) - 1), 26, colour)

    def svg(self) -> str:
        """The picture as text."""
        size = f'viewBox="0 0 {number(self.width)} {number(self.height)}" width="{number(self.width)}" height="{number(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title desc" font-family="{SANS}">'
        words = f'<title id="title">{html.escape(self.title)}</title>\n<desc id="desc">{html.escape(self.description)}</desc>'
        return "\n".join([head, words, *self.shapes, "</svg>\n"])
