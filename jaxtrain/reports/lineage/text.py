"""Draws a lineage as a tree of text. Not here: finding it."""

from collections.abc import Sequence

from jaxtrain.base.text import printable
from jaxtrain.reports.lineage.tree import Lineage, Node

MOST_NODES = 30
"""Nodes below one node that are drawn; JSON has all."""

_LINES = ("├─ ", "└─ ", "│  ", "   ")
_ASCII = ("|- ", "`- ", "|  ", "   ")


def draw(found: Lineage, encoding: str | None = "utf-8") -> str:
    """The tree, a line for each thing and one for its folder. encoding: of the terminal, which may lack some lines."""
    lines = _LINES if _can_encode("".join(_LINES), encoding) else _ASCII
    parts = _described(found.thing)
    for title, nodes, none in (
        ("made from", found.made_from, "nothing that is recorded"),
        ("led to", found.led_to, f"nothing in {', '.join(found.searched) or 'any folder that was searched'}"),
    ):
        parts += ["", title, *(_drawn(nodes, lines) or [f"{lines[1]}{none}"])]
    if found.wrong:
        shown = [f"  {printable(each, 300)}" for each in found.wrong[:MOST_NODES]]
        rest = len(found.wrong) - len(shown)
        parts += ["", "not read:", *shown, *([f"  and {rest:,} more"] if rest else [])]
    return "\n".join(parts)


def _drawn(nodes: Sequence[Node], lines: tuple[str, str, str, str]) -> list[str]:
    branch, last, trunk, gap = lines
    drawn: list[str] = []
    shown, rest = nodes[:MOST_NODES], len(nodes) - MOST_NODES
    for number, node in enumerate(shown, 1):
        is_last = number == len(nodes)
        first, *others = _described(node)
        drawn.append((last if is_last else branch) + first)
        drawn += [(gap if is_last else trunk) + line for line in [*others, *_drawn(node.nodes, lines)]]
    if rest > 0:
        drawn.append(f"{last}and {rest:,} more: --json has all")
    return drawn


def _described(node: Node) -> list[str]:
    """A thing in words: what it is, where it is, and each note; a line each."""
    kind = "" if node.kind == "missing" else node.kind
    words = [node.relation, kind, printable(node.name, 200)]
    about = f": {printable(node.about, 200)}" if node.about else ""
    place = [f"  {printable(node.folder, 1000)}"] if node.folder else []
    return [" ".join(filter(None, words)) + about, *place, *(f"  ({printable(note, 400)})" for note in node.notes)]


def _can_encode(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
