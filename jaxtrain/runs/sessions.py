"""What a session of a run (one process, from its start to its end) leaves for the account of the run's time.

Lines of metrics.jsonl after the last checkpoint are dropped when a run resumes, so what they say of the time of a
killed session is put into the event that begins the next one. Not here: the account (`reports/time_account`).
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxtrain.runs.json_lines import scan_lines
from jaxtrain.runs.owner import process_start


def process_age() -> float:
    """Seconds since this process started; 0 on systems without /proc."""
    try:
        _, ticks = process_start(os.getpid())
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - int(ticks) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def last_sign(folder: Path, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the files of a run say of its last session, before another one changes them: `seconds` by phase at `step`,
    the last one that a line of training reports, and when the files were last written, `alive`. {} without these files.

    lines: the objects of metrics.jsonl.
    """
    line = next((each for each in reversed(lines) if each.get("split") == "train"), {})
    seconds = seconds_of_line(line)
    written = [0.0]
    for name in ("metrics.jsonl", "events.jsonl", "steps.bin"):
        with contextlib.suppress(OSError):
            written.append((folder / name).stat().st_mtime)
    if not max(written):
        return {}
    alive = datetime.fromtimestamp(max(written), UTC).isoformat(timespec="milliseconds")
    return {"step": line.get("step", 0), "seconds": seconds, "alive": alive}


def left_by_session(folder: Path) -> dict[str, Any]:
    """`last_sign` of a folder whose damaged files are repaired, and named, only afterwards."""
    path = folder / "metrics.jsonl"
    return last_sign(folder, [line for _, line in scan_lines(path)[0]] if path.is_file() else [])


def seconds_of_line(line: Mapping[str, Any]) -> dict[str, float]:
    """The seconds by phase in a line of metrics.jsonl."""
    start, numbers = "seconds_", (int, float)
    return {name.removeprefix(start): x for name, x in line.items() if name.startswith(start) and type(x) in numbers}


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds by phase to a millisecond, as they are written into events."""
    return {phase: round(x, 3) for phase, x in seconds.items()}
