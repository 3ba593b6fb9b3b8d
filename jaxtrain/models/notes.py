"""Notes on what a model chose while it was traced, such as the attention that was lowered: kept as named scopes, so
that a profiler shows them too, and read back off the lowered program.
"""

import contextlib
import re

import jax

_NOTE = re.compile(r"\bnote\.(\w+)\.(\w+)")


def note(name: str, value: str) -> contextlib.AbstractContextManager[None]:
    """Operations traced inside carry the note that `name` is `value`."""
    assert name.isidentifier(), name
    assert value.isidentifier(), value
    return jax.named_scope(f"note.{name}.{value}")


def notes(lowered: jax.stages.Lowered) -> dict[str, list[str]]:
    """The notes on the operations that a program holds: the values by name, sorted."""
    found: dict[str, set[str]] = {}
    for name, value in _NOTE.findall(lowered.as_text(debug_info=True)):
        found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in sorted(found.items())}
