"""What a person sees of a run: its progress as lines of text, on a terminal or in a log. The console of a run and
`jaxtrain watch` draw the same.

Not here: writing to the terminal (`screen`).
"""

import io
import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtrain.base.text import duration, number, printable, size

WIDE = 60
"""Columns below which there is no view, only lines."""

POINTS = 256
"""Losses that are kept for the curve; beyond, neighbours are averaged, so that it always shows the whole run."""

NOT_PRINTED = {"intervals", "code", "signal", "startup", "seconds_by_phase", "before"}
"""Fields of events that are for programs which read events.jsonl."""

PHASE_WORDS = {
    "compile": "compiling",
    "restore": "restoring",
    "eval": "evaluating",
    "save": "saving",
    "other": "starting or ending",
}
"""What is said of a phase of `runs/clock` that is not training."""

_BLOCKS, _CURVE = "▁▂▃▄▅▆▇█", 32


class Curve:
    """The losses of a run, thinned out evenly."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._each, self._sum, self._count = 1, 0.0, 0

    def add(self, value: float) -> None:
        """Add the next loss."""
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._each:
            return
        self._values.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._values) >= POINTS:
            self._values = [(a + b) / 2 for a, b in zip(self._values[::2], self._values[1::2], strict=True)]
            self._each *= 2

    def text(self, width: int = _CURVE) -> str:
        """A block for each of `width` parts of the run, as high as its mean loss; `×` where that is not finite."""
        values = [*self._values]  # another thread may add one
        count = min(width, len(values))
        bounds = [len(values) * part // count for part in range(count + 1)] if count else []
        means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
        finite = [mean for mean in means if math.isfinite(mean)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
        return "".join(_block(mean, low, high) for mean in means)


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "×"
    return _BLOCKS[round((value - low) / (high - low) * (len(_BLOCKS) - 1)) if high > low else 0]


class RunView:
    """Takes what is known of a run, as it comes, and shows it.

    name: of the run. steps: those of the run. done: those that are done already. batch: examples a step; 0 if unknown.
    """

    def __init__(self, name: str, steps: int, done: int = 0, batch: int = 0) -> None:
        self.name, self.steps, self.done, self.batch = name, steps, done, batch
        self.note = ""
        """What is said beside the progress."""
        self._curve = Curve()
        self._last: Mapping[str, float] = {}
        """The last metrics of the train split."""
        self._scores: dict[str, tuple[int, Mapping[str, float]]] = {}
        self._saved, self._memory = 0, 0
        self._accounts: deque[Mapping[str, float]] = deque(maxlen=8)
        """The seconds by phase until the last lines."""
        self._seen: list[tuple[int, float]] = []
        """Step and time of the first and the last moment that were seen."""
        self.steps_per_second = 0.0
        """Of training alone, over the last period; 0 before it is known."""

    def stepped(self, step: int, now: float) -> None:
        """`step` steps are done at this time, in seconds from any origin. Their speed counts while there is no line."""
        self.done = max(self.done, step)
        if not self._seen or step < self._seen[0][0]:
            self._seen = [(step, now)]
        self._seen[1:] = [(step, now)]
        (first, since), (last, until) = self._seen[0], self._seen[-1]
        if not self._last and last > first and until - since >= 1.0:  # the first ones are only dispatched
            self.steps_per_second = (last - first) / (until - since)

    def trained(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the train split: metrics and rates by name."""
        self.done, self._last = max(self.done, step), values
        if "loss" in values:
            self._curve.add(values["loss"])
        if self.batch and "examples_per_second" in values:
            self.steps_per_second = values["examples_per_second"] / self.batch
        self._accounts.append({name: value for name, value in values.items() if name.startswith("seconds_")})

    def evaluated(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """The metrics of an evaluation."""
        self._scores[split] = step, values

    def saved(self, step: int) -> None:
        """The checkpoint of a step is durable."""
        self._saved = max(self._saved, step)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """An event of the run."""
        if type(memory := fields.get("peak_memory")) is int:
            self._memory = memory

    def eta(self) -> str:
        """The remaining time, with evaluations and saves as until now; "" while it is not known."""
        left, seconds = max(0, self.steps - self.done), self._accounts[-1] if self._accounts else {}
        once = sum(seconds.get(f"seconds_{phase}", 0.0) for phase in ("compile", "restore"))
        trained = seconds.get("seconds_data", 0.0) + seconds.get("seconds_step", 0.0)
        more = max(1.0, (seconds.get("seconds_total", 0.0) - once) / trained) if trained > 0 else 1.0
        return duration(more * left / self.steps_per_second) if self.steps_per_second > 0 and left else ""

    def waiting(self) -> float | None:
        """The share of training that was spent waiting for data, over the last lines; None while it is not known."""
        if not self._accounts:
            return None
        first = self._accounts[0] if len(self._accounts) > 1 else {}
        data, step = (
            self._accounts[-1].get(name, 0.0) - first.get(name, 0.0) for name in ("seconds_data", "seconds_step")
        )
        return data / (data + step) if data + step > 0 else None

    def facts(self) -> list[tuple[str, str]]:
        """What is known beside the progress, by name."""
        last, found = self._last, []
        if "loss" in last:
            others = [
                f"{name} {number(last[name])}"
                for name in last
                if name != "loss" and "/" not in name and not name.startswith("seconds_") and name not in _RATES
            ]
            found.append(("loss", "  ".join([f"{number(last['loss'])}  {self._curve.text()}", *others])))
        speed = [f"{number(self.steps_per_second)} steps/s"] if self.steps_per_second else []
        for name, unit in (("examples_per_second", "examples/s"), ("tokens_per_second", "tokens/s")):
            speed += [f"{number(last[name])} {unit}"] if name in last else []
        speed += [f"MFU {last['mfu']:.1%}"] if "mfu" in last else []
        waiting = self.waiting()
        speed += [] if waiting is None else [f"{waiting:.0%} of it waiting for data"]
        if speed:
            found.append(("speed", ", ".join(speed)))
        for split, (step, values) in [*self._scores.items()]:  # another thread may add one
            found.append((split, f"{metrics_text(values)}  at step {step}"))
        kept = [f"step {self._saved}"] if self._saved else []
        if kept:
            found.append(("saved", kept[0]))
        if self._memory:
            found.append(("memory", f"{size(self._memory)} a device"))
        return found

    def lines(self, width: int, height: int, color: bool) -> list[str]:
        """At most `height` lines of at most `width` columns, with the terminal's codes where `color`."""
        share = self.done / self.steps if self.steps else 0.0
        head = f"{self.name}  step {self.done}/{self.steps}  {share:.0%}"
        eta = self.eta()
        ends = "  ".join(part for part in (f"eta {eta}" if eta else "", printable(self.note)) if part)
        if width < WIDE or height < 3:
            return [_cut(f"{head}  {ends}", width)][:height]
        from rich.console import Console, Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 2))
        room = max(8, width - len(head) - len(ends) - 5)
        bar.add_row(
            Text(head, style="bold"), ProgressBar(total=max(1, self.steps), completed=self.done, width=room), ends
        )
        below = Table.grid(padding=(0, 2))
        facts = self.facts()[: height - 1]
        names = max((len(printable(name)) + 2 for name, _ in facts), default=0)
        below.add_column(style="dim", no_wrap=True, min_width=names)  # else a long line of metrics would narrow it to 0
        below.add_column(no_wrap=True, overflow="ellipsis")
        for name, text in facts:
            below.add_row(Text(f"  {printable(name)}"), Text(printable(text)))
        colors: Any = "standard" if color else None
        console = Console(file=io.StringIO(), force_terminal=color, width=width, color_system=colors, markup=False)
        with console.capture() as drawn:
            console.print(Group(bar, below))
        return drawn.get().rstrip("\n").split("\n")[:height]


_RATES = {"examples_per_second", "tokens_per_second", "mfu"}


def metrics_text(values: Mapping[str, float]) -> str:
    """Metrics as `name value` pairs. Those of single classes or bins, such as `confusion/f1/class_3`, are left out,
    since they are too many for a line.
    """
    return "  ".join(f"{name} {number(value)}" for name, value in values.items() if name.count("/") < 2)


def event_text(kind: str, fields: Mapping[str, Any]) -> str:
    """An event on one line."""
    shown = [f"{name} {value}" for name, value in fields.items() if name not in NOT_PRINTED]
    return printable("  ".join([kind, *shown]))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def plain_lines(view: RunView) -> Sequence[str]:
    """The view without a terminal, one fact a line."""
    eta = f"  eta {view.eta()}" if view.eta() else ""
    head = f"{view.name}  step {view.done}/{view.steps}{eta}  {view.note}".rstrip()
    return [printable(head), *(printable(f"  {name}: {text}") for name, text in view.facts())]
