"""Of a language model: texts that it writes, and its loss by position. They need a checkpoint, and are computed here.

Not here: metrics that the run logged.
"""

import itertools

import jax
import numpy as np

from jaxtrain.base.text import cut
from jaxtrain.generation.run import generate_run
from jaxtrain.generation.sampling import Sampling
from jaxtrain.reports.page import Item, Paragraph, Plot, Preformatted, Section, Series
from jaxtrain.reports.report.examples import within
from jaxtrain.reports.report.intervals import NORMAL
from jaxtrain.runs.folder import Run
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks.base import cross_entropy
from jaxtrain.tasks.language import LanguageModel

_SECONDS = 120.0
"""How long each of the two may take."""

_TOKENS = 160
_ROWS = 256

_LONGEST = 2000  # characters of a text


def language(run: Run, samples: int) -> Section | None:
    """The section; None for a run of another task. samples: how many texts; 0 computes nothing."""
    if not isinstance(run.experiment.task, LanguageModel):
        return None
    if samples == 0:
        return Section("Language model", [Paragraph("Texts and loss by position were left out: `--samples 0`.")])
    items: list[Item] = []
    for what, compute in (("Texts", lambda: _texts(run, samples)), ("The loss by position", lambda: _by_position(run))):
        try:
            items += within(_SECONDS, compute)
        except TimeoutError:
            items.append(Paragraph(f"{what} could not be computed within {_SECONDS:.0f} s here."))
        except Exception as error:  # of the user's model, of a checkpoint or data that are gone: the report stands
            said = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
            items.append(Paragraph(f"{what} cannot be shown: {cut(said, 400)}"))
    return Section("Language model", items)


def _texts(run: Run, samples: int) -> list[Item]:
    texts = [""] * samples
    sampling = Sampling(temperature=0.8)
    try:
        pieces = generate_run(run, texts, _TOKENS, sampling)
    except ValueError:  # of a model whose rows are shorter, or whose texts nothing begins
        texts = ["The"] * samples
        pieces = generate_run(run, texts, None, sampling)
    for number, piece in pieces:
        texts[number] += piece
    head = Paragraph(f"{samples} texts by the latest checkpoint, at temperature {sampling.temperature}:")
    return [head, *(Preformatted(text[:_LONGEST], f"text {number}") for number, text in enumerate(texts, 1))]


def _by_position(run: Run) -> list[Item]:
    if not run.experiment.evals:
        return [Paragraph("There is no loss by position: the experiment has no evaluation.")]
    split, pipeline = next(iter(run.experiment.evals.items()))
    restored = run.restore(None, Layout(), jax.devices()[:1])
    task, variables = restored.experiment.task, restored.state.evaluated
    assert isinstance(task, LanguageModel)
    if "segments" in pipeline.example():
        return [Paragraph("There is no loss by position of packed rows: a row holds several documents.")]

    @jax.jit
    def losses(variables, batch):
        return cross_entropy(task.model.apply(variables, task.read(batch))[0], batch[task.inputs][:, 1:])

    found, enough = list[np.ndarray](), -(-_ROWS // pipeline.batch_size)
    with restored.program.scope():
        for batch in itertools.islice(pipeline.epoch(), enough):
            found.append(np.asarray(losses(variables, {task.inputs: batch[task.inputs]}))[batch["mask"]])
    rows = np.concatenate(found).astype(np.float64)
    mean, error = rows.mean(axis=0), rows.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else np.nan
    at = np.arange(1, len(mean) + 1)
    line = Series(split, at, mean, low=mean - NORMAL * error, high=mean + NORMAL * error, smooth=False)
    note = f"Over {len(rows):,} rows of {split}, in nats; the band is the 95 % interval of each position's mean."
    return [Plot("Loss by position", [line], x="position"), Paragraph(note, "note")]
