"""A card as files for people and other tools: card.html, and croissant.json (MLCommons' Croissant)."""

import html
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtrain.base.files import replace_text
from jaxtrain.base.packages import needs
from jaxtrain.datasets.card import Card
from jaxtrain.datasets.fields import Field

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem } th { text-align: left; white-space: nowrap }
td, th { border-bottom: 1px solid #ddd; padding: .3rem .8rem .3rem 0; vertical-align: top; overflow-wrap: break-word }
.plots { display: flex; flex-wrap: wrap; gap: 1rem } .plots svg { width: 19rem; height: auto }
h1 small { color: #777; font-weight: normal } code { font-size: 90% }
"""


def write_html(card: Card, folder: Path) -> None:
    """Write card.html, one file with all in it. Raises ConfigError without matplotlib."""
    e = html.escape
    about = [(name, e(str(getattr(card, name)))) for name in ("origin", "licence", "access", "retention", "rule")]
    about += [("built", e(f"{card.built}, revision {card.revision or 'unknown'}")), ("raw records", f"{card.raw:,}")]
    filters = [("filter", "seen", "dropped", "for example")]
    for tally in card.filters:
        samples = (
            f"{s['index']}: {s['why']}<br><small>{e(' · '.join(map(str, s['record'].values())))}</small>"
            for s in tally.samples
        )
        filters.append((e(str(tally)), f"{tally.seen:,}", f"{tally.dropped:,}", "<br>".join(samples)))
    splits = [("split", "records", "files", "hash of the records")]
    splits += [
        (e(name), f"{split.records:,}", str(len(split.files)), f"<code>{split.content}</code>")
        for name, split in card.splits.items()
    ]
    fields = [("field", *map(e, card.splits))]
    fields += [
        (e(name), *(e(str(split.schema.fields[name])) for split in card.splits.values())) for name in card.schema.fields
    ]
    near = [(e(where), f"{count:,}") for where, count in (card.near or {}).items()]
    plots = "".join(
        _plot(name, [(s, card.splits[s].schema.fields[name]) for s in card.splits]) for name in card.schema.fields
    )
    body = [
        f"<h1>{e(card.name)} <small>{e(card.version)}</small></h1><p>{e(card.description)}</p>{_html_table(about)}",
        f"<h2>Splits</h2>{_html_table(splits, True)}",
        f"<h2>Fields</h2>{_html_table(fields, True)}<div class=plots>{plots}</div>",
        f"<h2>Quality filters</h2>{_html_table(filters, True)}" if card.filters else "",
        f"<h2>Near-duplicates left, pairs</h2>{_html_table(near)}" if near else "",
        f"<h2>How it was made</h2>{_html_table([(e(path), e(str(value))) for path, value in card.made.items()])}",
    ]
    head = (
        f'<!doctype html><meta charset="utf-8"><title>{e(card.name)} {e(card.version)}</title><style>{_STYLE}</style>'
    )
    replace_text(folder / "card.html", head + "\n".join(body))


def _html_table(rows: Sequence[Sequence[str]], headed: bool = False) -> str:
    def line(row: Iterable[str], first: str, rest: str) -> str:
        cells = [f"<{first if i == 0 else rest}>{cell}</{first if i == 0 else rest}>" for i, cell in enumerate(row)]
        return f"<tr>{''.join(cells)}</tr>"

    lines = [line(row, "th", "th" if headed and number == 0 else "td") for number, row in enumerate(rows)]
    return f"<table>{''.join(lines)}</table>"


def _plot(name: str, fields: Sequence[tuple[str, Field]]) -> str:
    """The distribution of a field in each split as SVG, in shares, so that splits of any size compare."""
    with needs("a card with plots", "matplotlib", "datasets"):
        import matplotlib as mpl
        from matplotlib.figure import Figure
    figure = Figure(figsize=(4, 2.8))
    axes = figure.add_axes((0.17, 0.25, 0.8, 0.63))  # a layout engine would take most of the time
    for number, (split, field) in enumerate(fields):
        if field.vocabulary:
            words = sorted(field.vocabulary, key=lambda word: (len(word), word))
            total = sum(field.vocabulary.values())
            places = [place + 0.8 * (number - len(fields) / 2 + 0.5) / len(fields) for place in range(len(words))]
            axes.bar(places, [field.vocabulary[word] / total for word in words], 0.8 / len(fields), label=split)
            axes.set_xticks(range(len(words)), [word[:12] for word in words], rotation=90 if len(words) > 10 else 0)
        elif field.counts:
            axes.stairs([count / max(1, sum(field.counts)) for count in field.counts], field.edges, label=split)
    axes.set_title(
        f"{name}: length" if fields[0][1].kind in ("text", "bytes") and not fields[0][1].vocabulary else name, size=10
    )
    axes.set_ylabel("share")
    if len(fields) > 1:
        axes.legend(fontsize=8, frameon=False)
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "jaxtrain", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", drawn.getvalue(), count=1, flags=re.DOTALL)


def write_croissant(card: Card, folder: Path) -> None:
    """Write croissant.json, made and validated by the reference library. Raises ConfigError without mlcroissant."""
    with needs("croissant.json", "mlcroissant", "datasets"):
        import mlcroissant as mlc
    kinds = {"text": mlc.DataType.TEXT, "integer": mlc.DataType.INTEGER}
    files: list[Any] = [
        mlc.FileObject(
            id=file.path,
            name=file.path,
            content_url=file.path,
            content_size=f"{file.bytes} B",
            encoding_formats=["application/octet-stream"],
            sha256=file.sha256,
        )
        for split in card.splits.values()
        for file in split.files
    ]
    record_sets = [
        mlc.RecordSet(
            id=split,
            name=split,
            fields=[
                mlc.Field(
                    id=f"{split}/{name}",
                    name=name,
                    description=str(field),
                    data_types=[kinds.get(field.kind, mlc.DataType.FLOAT)],
                    source=mlc.Source(
                        file_object=file.path, extract=mlc.Extract(file_property=mlc.FileProperty.content)
                    ),
                )
                for name, field in found.schema.fields.items()
                for file in found.files[:1]
            ],
        )
        for split, found in card.splits.items()
    ]
    metadata = mlc.Metadata(
        name=card.name,
        version=card.version,
        description=card.description,
        license=[card.licence],
        url=card.origin,
        creators=[],
        distribution=files,
        record_sets=record_sets,
    )
    text = json.dumps(metadata.to_json(), indent=1, default=str, ensure_ascii=False)
    replace_text(folder / "croissant.json", text + "\n")
