"""The verb that generates text from a run or a bundle. Not here: anything that it does."""

import sys
from collections.abc import Iterator
from typing import Annotated

import jax
import tyro

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli.deploy import RunOrBundle, check_backend
from jaxtrain.deploy.bundle import Backend
from jaxtrain.experiment.start import SavedStep


def generate(
    model: RunOrBundle,
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT …")],
    tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    step: SavedStep | None = None,
    mesh: str | None = None,
    context: int | None = None,
    backend: Backend = "jax",
) -> None:
    """Continue texts with a saved step of a language model's run, or with its bundle, as they come.

    Args:
        model: The run's folder, or the bundle's.
        prompts: Texts to continue; "" begins a new one where the run's data have a token between documents.
        tokens: The most tokens to generate for each; 200 by default, or what the context has room for.
        temperature: Logits are divided by it; 0 takes the likeliest token each time.
        top_k: Draw from the k likeliest tokens.
        top_p: Draw from the fewest likeliest tokens whose probabilities reach p.
        min_p: Draw from tokens at least p times as likely as the likeliest.
        seed: Of the draws; prompt i, from 0 on, draws with the seed that is i higher.
        stop: A text that ends what is generated; may be given several times.
        step: The saved step, "best" or "latest"; the latest by default. A bundle is of one step.
        mesh: Devices, such as "data 2 tensor 4"; by default the run's, or one where these do not fit. A bundle's graphs
            are for one.
        context: The most tokens of a prompt and its text; by default the length of the rows that the run trained on,
            which a bundle cannot go beyond.
        backend: Of a bundle, what computes it.
    """
    from jaxtrain.analysis.verify import read_mesh
    from jaxtrain.deploy.manifest import is_bundle
    from jaxtrain.generation.run import generate_run
    from jaxtrain.generation.sampling import Sampling
    from jaxtrain.runs.folder import Run

    if not prompts:
        raise ConfigError('generate: give at least one text after the run; "" begins a new one')
    if tokens is not None and tokens < 1:
        raise ConfigError(f"--tokens {tokens}: give at least 1")
    if context is not None and context < 2:
        raise ConfigError(f"--context {context}: give at least 2")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed {seed}: give a number from 0 to {2**32 - 1}")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if is_bundle(model):
        from jaxtrain.deploy.bundle import Bundle
        from jaxtrain.deploy.continuation import continued

        for flag, given, why in (("--step", step, "is of one step"), ("--mesh", mesh, "has graphs for one device")):
            if given is not None:
                raise ConfigError(f"{flag}: a bundle {why}: generate from its run")
        pieces = continued(Bundle(model, backend), prompts, tokens, sampling, seed, stop, context)
    else:
        check_backend(backend, model)
        over = None if mesh is None else read_mesh(mesh, jax.device_count())
        pieces = generate_run(Run(model), prompts, tokens, sampling, seed, stop, step, over, context)
    for text in _in_order(pieces, prompts):
        sys.stdout.write(text)
        sys.stdout.flush()


def _in_order(pieces: Iterator[tuple[int, str]], prompts: tuple[str, ...]) -> Iterator[str]:
    """Each prompt with its text on lines of its own: the first as it comes, each other one when those before ended."""
    waiting = [""] * len(prompts)
    yield prompts[0]
    for number, piece in pieces:
        if number == 0:
            yield piece
        else:
            waiting[number] += piece
    yield "\n"
    for prompt, text in zip(prompts[1:], waiting[1:], strict=True):
        yield f"{prompt}{text}\n"
