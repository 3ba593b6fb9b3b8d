"""What a run was: how it ended, its values and where each came from, its data, its environment, its events.

Not here: what it measured.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from jaxtrain.base.text import cut, duration, number, size
from jaxtrain.experiment.origins import COMMAND_LINE, DEFAULT, DERIVED, FILE, PYTHON, json_paths
from jaxtrain.reports.page import Details, Item, Link, Paragraph, Preformatted, Section, Table
from jaxtrain.reports.report.curves import event_words
from jaxtrain.reports.report.record import RunRecord, is_rate
from jaxtrain.reports.status import RunStatus

_MOST_EVENTS = 300
_MOST_TEXT = 200_000
"""Characters of a diff or a traceback that are shown."""

_CHANGED = (COMMAND_LINE, FILE, PYTHON, DERIVED)


def summary(record: RunRecord, status: RunStatus) -> Section:
    """How it ended, and the metrics of its last evaluation."""
    state, why = status.state, status.why
    items: list[Item] = []
    if state not in ("finished", "running"):
        told = "cannot be told" if state == "unreadable" else f"is “{state}”"
        items.append(Paragraph(f"The state of this run {told}{f': {why}' if why else '.'}", "warning"))
    begun = [each for each in record.events if each.get("kind") == "begun"]
    of, done = record.of, record.last_step
    rows: list[list[object]] = [["state", f"{state}, step {done:,}" + (f" of {of:,}" if of else "")]]
    if begun:
        rows.append(["begun", _when(begun[0])])
        rows.append(["last event", _when(record.events[-1])])
        rows += [["sessions", len(begun)]] if len(begun) > 1 else []
    seconds = record.axes(record.splits["train"].get("loss", ([0],))[0][-1:]).get("seconds", [])
    rows += [["running time, as logged", duration(float(seconds[-1]))]] if len(seconds) else []
    if isinstance(command := record.environment.get("command"), str):
        rows.append(["command", command])
    if isinstance(origin := record.saved.get("origin"), str):
        rows.append(["experiment", origin])
    if isinstance(start := record.saved.get("experiment", {}).get("start"), dict):
        rows.append(["parameters from", str(start.get("source"))])
    if fingerprint := record.saved.get("fingerprint"):
        rows.append(["fingerprint", fingerprint])
    items += [*_last_scores(record), Table(["", ""], rows)]
    if record.wrong:
        items.append(Paragraph("Not all of this run's folder can be shown:", "warning"))
        items += [Paragraph(f"• {each}") for each in record.wrong]
    for name in ("traceback.txt", "stacks.txt"):
        if text := tail(record, name):
            items.append(Details(f"The end of {name}", [Preformatted(text, name)], open=state == "crashed"))
    return Section("Summary", items)


def _when(event: Mapping[str, Any]) -> str:
    """The time of an event, which is in UTC."""
    return str(event.get("time", "not known"))[:19].replace("T", " ") + " UTC"


def _last_scores(record: RunRecord) -> list[Item]:
    rows, names = [], list[str]()
    for split, metrics in record.splits.items():
        last = {name: (int(steps[-1]), float(values[-1])) for name, (steps, values) in metrics.items()}
        last = {
            name: one for name, one in last.items() if not is_rate(name) and name not in ("gradient_norm", "skipped")
        }
        names += [name for name in last if name not in names and "/" not in name]
        rows += [(split, last)] if last else []
    if not rows:
        return [Paragraph("No metric was logged.")]
    table = [
        [split, max(step for step, _ in last.values()), *(last[name][1] if name in last else None for name in names)]
        for split, last in rows
    ]
    return [Table(["split", "step", *names], table, "The last value of each metric; of training, over the last period")]


def values(record: RunRecord) -> Section:
    """Every value of the experiment, those that somebody chose first."""
    found = json_paths(record.saved.get("experiment", {}))
    if not found:
        return Section("Experiment", [Paragraph("The experiment is not known: experiment.json cannot be read.")])
    origins = record.saved.get("origins")
    if not isinstance(origins, dict):
        note = Paragraph("Where the values came from was not recorded: an older version made this run.")
        return Section("Experiment", [note, Details(f"All {len(found)} values", [_values(found, {})])])
    chosen = {path: value for path, value in found.items() if origins.get(path) in _CHANGED}
    by = {origin: [path for path in chosen if origins[path] == origin] for origin in _CHANGED}
    order = {path: chosen[path] for origin in _CHANGED for path in by[origin]}
    rest = {path: value for path, value in found.items() if path not in chosen}
    return Section(
        "Experiment",
        [
            _values(order, origins) if order else Paragraph("All values are defaults."),
            Details(f"{len(rest)} values that nobody set", [_values(rest, origins)]),
        ],
    )


def _values(found: Mapping[str, Any], origins: Mapping[str, Any]) -> Table:
    if not origins:
        return Table(["value", "is"], [[path, _shown(value)] for path, value in found.items()])
    rows = [[path, _shown(value), str(origins.get(path, DEFAULT))] for path, value in found.items()]
    return Table(["value", "is", "from"], rows)


def _shown(value: Any) -> str:
    return cut(number(value) if isinstance(value, float) else str(value), 300)


def data(record: RunRecord) -> Section:
    """The cards of the datasets."""
    config = record.saved.get("config", {})
    sources = {
        path.removesuffix(".source.kind"): f"{kind} {config.get(path.replace('kind', 'identity'), '')}".strip()
        for path, kind in config.items()
        if path.endswith(".source.kind") and path.count(".source") == 1
    }
    items: list[Item] = [Table(["pipeline", "source"], [[name, source] for name, source in sources.items()])]
    items = items if sources else [Paragraph("What it was trained on is not known.")]
    if not record.cards:
        items.append(Paragraph("There is no card: cards belong to datasets that `jaxtrain data build` made."))
    for name, card in record.cards.items():
        about = ("description", "origin", "licence", "access", "retention", "built", "rule")
        rows = [[key, _linked(card[key])] for key in about if isinstance(card.get(key), str)]
        splits = card["splits"] if isinstance(card.get("splits"), dict) else {}
        counts = [
            [split, one.get("records"), str(one.get("content", ""))]
            for split, one in splits.items()
            if isinstance(one, dict)
        ]
        inside: list[Item] = [Table(["", ""], rows)] if rows else []
        inside += [Table(["split", "records", "hash of the records"], counts)] if counts else []
        title = f"{card.get('name', name)} {card.get('version', '')}".strip()
        items.append(Details(f"Card of {title}", inside or [Paragraph("It says nothing.")], open=True))
    return Section("Data", items)


def _linked(text: str) -> object:
    words = text.split()
    return Link(text, words[0]) if len(words) == 1 else cut(text, 600)


def surroundings(record: RunRecord) -> Section:
    """Code, packages, hardware."""
    found = record.environment
    if not found:
        return Section("Environment", [Paragraph("What it ran on is not known: environment.json cannot be read.")])
    git = found.get("git") or {}
    rows: list[list[object]] = []
    if revision := git.get("revision"):
        changed = " with uncommitted changes" if git.get("diff") or git.get("untracked") else ""
        rows.append(["git revision", f"{revision}{changed}"])
    else:
        rows.append(["git revision", "none: it ran outside of a repository"])
    hardware = found.get("hardware", {})
    if hardware:
        told = [f"{hardware.get('devices', '?')} × {hardware.get('device', '?')} ({hardware.get('platform', '?')})"]
        told += [f"{name} {hardware[name]}" for name in ("processes", "cpus") if name in hardware]
        memory = hardware.get("memory_bytes")
        told += [f"{size(memory)} of memory"] if isinstance(memory, int) else []
        rows.append(["hardware", ", ".join(told)])
    rows += [[name, str(found[name])] for name in ("hostname", "platform", "python", "folder") if name in found]
    packages = {str(name): str(version) for name, version in found.get("packages", {}).items()}
    for name in ("jaxtrain", "jax", "jaxlib", "flax", "optax", "numpy"):
        rows += [[name, packages[name]]] if name in packages else []
    items: list[Item] = [Table(["", ""], rows)]
    if variables := found.get("variables"):
        shown = [[str(name), shlex.quote(str(value))] for name, value in variables.items()]
        items.append(Details(f"{len(shown)} environment variables", [Table(["variable", "value"], shown)]))
    if packages:
        shown = [[name, version] for name, version in packages.items()]
        items.append(Details(f"All {len(shown)} packages", [Table(["package", "version"], shown)]))
    if diff := git.get("diff"):
        items.append(Details("Uncommitted changes", [Preformatted(clipped(diff), "git diff HEAD")]))
    if isinstance(untracked := git.get("untracked"), list) and untracked:
        items.append(
            Details(f"{len(untracked)} untracked files", [Preformatted(clipped("\n".join(map(str, untracked))))])
        )
    return Section("Environment", items)


def events(record: RunRecord) -> Section:
    """What happened, in order."""
    if not record.events:
        return Section("Events", [Paragraph("No event was logged.")])
    rows = [
        [_when(each).removesuffix(" UTC"), each.get("step"), event_words(each), _rest(each)]
        for each in record.events
        if each["kind"] != "saving"  # checkpoints are marks on the curves
    ]
    items: list[Item] = [Table(["time (UTC)", "step", "event", "more"], rows[-_MOST_EVENTS:])]
    if len(rows) > _MOST_EVENTS:
        items.insert(0, Paragraph(f"The last {_MOST_EVENTS} of {len(rows):,} events; events.jsonl has all."))
    return Section("Events", items)


def _rest(event: Mapping[str, Any]) -> str:
    left = ("time", "kind", "step", "note", "reason", "why", "error", "seconds_by_phase", "before")
    return cut("  ".join(f"{name} {value}" for name, value in event.items() if name not in left), 200)


def tail(record: RunRecord, name: str) -> str:
    """The last lines of a file of text of the folder; "" where there is none."""
    path = record.folder / name
    if not path.is_file() or path.is_symlink():
        return ""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8_000))
            text = file.read(8_000).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-60:])


def clipped(text: str) -> str:
    """A text that is not too long for a page, and says where it was cut."""
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}\n… {len(text) - _MOST_TEXT:,} more characters"
