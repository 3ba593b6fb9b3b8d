"""The result of replaying a step, as a page of text, whose first line is the verdict, or as JSON."""

import math
from collections.abc import Iterator
from typing import Any

from jaxtrain.analysis.replay.explain import ExplainedRow, Explanation, Fault, is_finite
from jaxtrain.base.text import cut, number

LINES = 40
"""The most lines of a page."""

OUTLIERS = 4
"""The most outliers that are shown."""


def page(found: Explanation) -> str:
    """At most `LINES` lines of text."""
    lines = [verdict(found), *_reproduced(found), *(f"  note: {note}" for note in found.moment.notes)]
    if found.first_wrong is not None and found.first_wrong < found.moment.step:
        return "\n".join(lines)
    if found.fault is not None:
        lines += ["first not finite", *(f"  {line}" for line in _fault(found.fault))]
    if found.outliers or found.activations:
        lines += ["out of line", *(f"  {each}" for each in found.outliers[:OUTLIERS])]
        lines += [f"  first activation: {found.activations[0]}"] if found.activations else []
        lines += [f"    {line}" for line in found.activations[1:] if line]
    lines += ["examples, by their share of the loss and of the gradient", *_example_lines(found)]
    return "\n".join(line[:200] for line in lines[:LINES])


def verdict(found: Explanation) -> str:
    """One line: whether the step is finite, and the probable cause of what is wrong."""
    step = found.moment.step
    if found.first_wrong is not None and found.first_wrong < step:
        return (
            f"step {step} begins with a state that is not finite: the first such step is {found.first_wrong}, "
            f"so replay --step {found.first_wrong}"
        )
    rates = [str(each) for each in found.outliers if each.what.startswith("learning")]
    if is_finite(found):
        numbers = f"loss {number(found.loss)}, gradient norm {number(found.gradient_norm)}"
        others = [str(each) for each in found.outliers if each.of_layer]
        why = "; ".join([*rates[:1], *others[:1]]) or "nothing in it is out of line"
        return f"step {step} is finite ({numbers}): {why}"
    name, value = ("gradient norm", found.gradient_norm) if math.isfinite(found.loss) else ("loss", found.loss)
    if found.fault is None:
        why = "no single equation is not finite without XLA's fusion"
    else:
        why = f"first not finite is {found.fault}"
    examples = found.examples[:1] if 0 < found.poisoned <= len(found.examples) else ()
    of = f", for {examples[0].where}" if examples else ""
    after = f"; {rates[0]}" if rates else ""
    return f"step {step}: {name} is {value:g}: {why}{of}{after}"


def _reproduced(found: Explanation) -> Iterator[str]:
    same, start = found.reproduced, found.moment.start
    begun = f"from the checkpoint of step {start}" if start else "from the initial state"
    if not same.steps:
        yield f"not compared: the run recorded no step of {start + 1}…{found.moment.step}; run again {begun}"
        return
    steps = f"step {same.steps[0]}" if len(same.steps) == 1 else f"steps {same.steps[0]}…{same.steps[-1]}"
    if same.exactly:
        yield f"reproduced: bitwise the same as the run in {steps} ({same.file}), {begun}"
        return
    yield f"not reproduced: at step {same.step} ({same.file}) {same.difference}; run again {begun}"
    causes = same.causes or ("nothing that the run recorded of its environment; perhaps its data or its code",)
    yield from (f"  may be why: {cut(cause, 150)}" for cause in causes[:5])


def _fault(fault: Fault) -> Iterator[str]:
    if fault.phase == "input":
        yield f"{fault.parameter}: {', '.join(fault.outputs)}"
        return
    yield " · ".join([fault.phase, fault.primitive, *reversed(fault.parts), *filter(None, [fault.modules])])
    for frame in dict.fromkeys([fault.frame, *fault.frames[:1]]):
        if frame is not None:
            yield f"{frame}: {frame.source}"
    if fault.parameter:
        yield f"parameter: {fault.parameter}, {'which it reads' if fault.reads else 'the last one that was read'}"
    yield from (f"in   {each}" for each in fault.inputs[:4])
    yield from (f"out  {each}" for each in fault.outputs[:2])


def _example_lines(found: Explanation) -> Iterator[str]:
    rows = found.moment.program.experiment.data.batch_size
    if found.poisoned > len(found.examples):
        yield f"  {found.poisoned} of {rows} rows are not finite, each alone: it is not one example"
    elif not found.poisoned and not is_finite(found):
        yield "  every row alone is finite"
    if found.note:
        yield f"  {found.note}"
    for example in [each for each in found.examples if not found.poisoned or not each.share.finite]:
        yield f"  row {example.share.row}: {_share(example)}; {example.where}"
        yield from (f"    not finite: {words}" for words in example.wrong[:2])
        yield from (f"    {name}: {words}" for name, words in list(example.fields.items())[:4])


def _share(example: ExplainedRow) -> str:
    share = example.share
    if not share.finite:
        return f"loss {share.loss:g}, gradient norm {share.gradient:g}: not finite alone"
    return f"{share.of_loss:.1%} of the loss, {share.of_gradient:.1%} of the gradient"


def as_json(found: Explanation) -> dict[str, Any]:
    """The result as JSON; NaN and infinities are floats."""
    fault, same = found.fault, found.reproduced
    return {
        "verdict": verdict(found),
        "step": found.moment.step,
        "from": found.moment.start,
        "loss": found.loss,
        "gradient_norm": found.gradient_norm,
        "reproduced": {
            "bitwise": same.exactly,
            "steps": list(same.steps),
            "file": same.file,
            "step": same.step,
            "difference": same.difference,
            "causes": list(same.causes),
        },
        "first_not_finite_step": found.first_wrong,
        "first_not_finite": None
        if fault is None
        else {
            "phase": fault.phase,
            "primitive": fault.primitive,
            "file": fault.frame and fault.frame.file,
            "line": fault.frame and fault.frame.line,
            "source": fault.frame and fault.frame.source,
            "passes": list(fault.parts),
            "modules": fault.modules,
            "parameter": fault.parameter,
            "inputs": list(fault.inputs),
            "outputs": list(fault.outputs),
        },
        "out_of_line": [
            {"what": each.what, "value": each.value, "usual": each.usual, "step": each.step} for each in found.outliers
        ],
        "activations": list(found.activations),
        "examples": [
            {
                "row": each.share.row,
                "where": each.where,
                "loss": each.share.loss,
                "of_loss": each.share.of_loss,
                "gradient": each.share.gradient,
                "of_gradient": each.share.of_gradient,
                "not_finite": list(each.wrong),
                "fields": dict(each.fields),
            }
            for each in found.examples
        ],
        "rows_not_finite": found.poisoned,
        "note": found.note,
    }
