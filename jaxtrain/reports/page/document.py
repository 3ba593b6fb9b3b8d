"""The page: a file that asks for nothing. Its policy allows no script, style or request but its own.

Not here: what stands on it.
"""

import base64
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from jaxtrain.base.errors import cannot_write
from jaxtrain.base.files import replace_text
from jaxtrain.reports.page.arrays import PageData
from jaxtrain.reports.page.items import Section

_HERE = Path(__file__).parent
_SCRIPTS = ("uplot/uPlot.iife.min.js", "static/scales.js", "static/plots.js", "static/page.js")
_STYLES = ("uplot/uPlot.min.css", "static/page.css")


@dataclass(frozen=True)
class Page:
    """A page of sections, with links to them at its beginning."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""

    def html(self) -> str:
        """The whole file."""
        arrays = PageData()
        body = "".join(section.html(arrays) for section in self.sections)
        links = "".join(f'<a href="#{each.anchor}">{escape(each.title)}</a>' for each in self.sections)
        title = escape(self.title)
        subtitle = f"<p class=subtitle>{escape(self.subtitle)}</p>" if self.subtitle else ""
        scripts, styles = ([_asset(name) for name in names] for names in (_SCRIPTS, _STYLES))
        head = f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts, styles)}">'
        head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
        head += '<meta name="referrer" content="no-referrer">'
        head += f"<title>{title}</title>" + "".join(f"<style>{style}</style>" for style in styles)
        return (
            f'<!doctype html><html lang=en><head><meta charset="utf-8">{head}</head><body>'
            f"<header><h1>{title}</h1>{subtitle}<nav aria-label=Sections>{links}</nav></header>"
            "<div class=toolbar role=toolbar aria-label='All plots'></div>"
            "<noscript><p class=note>Plots are drawn by JavaScript; the tables hold their numbers.</p></noscript>"
            f'<main>{body}</main><script type="application/json">{arrays.json()}</script>'
            + "".join(f"<script>{script}</script>" for script in scripts)
            + "</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Writes the page whole or not at all; returns its path. Raises ConfigError where it cannot be written."""
        text = self.html().encode("utf-8", "backslashreplace").decode()  # names of files may hold lone surrogates
        try:
            replace_text(path, text)
        except OSError as error:
            raise cannot_write(str(path), error) from error
        return path


@functools.cache
def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    def hashes(texts: Sequence[str]) -> str:
        found = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{each}'" for each in found)

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
