"""What a bundle says of itself: where it comes from, its licence, and its model card. Reads a run's folder."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import read_json
from jaxtrain.base.text import number
from jaxtrain.deploy.signature import Signature
from jaxtrain.runs.folder import Run

NO_LICENCE = "none stated"

_PACKAGES = ("jaxtrain", "jax", "jaxlib", "flax", "optax", "numpy")


def lineage(run: Run, step: int) -> dict[str, Any]:
    """Run, data and code that a model comes from."""
    saved, environment = run.saved, _environment(run.folder)
    identities = {path: value for path, value in saved["config"].items() if path.endswith(".identity")}
    git = environment.get("git") or {}
    changed = bool(git.get("diff") or git.get("untracked"))
    return {
        "run": str(run.folder.absolute()),
        "origin": saved.get("origin"),
        "fingerprint": saved["fingerprint"],
        "step": step,
        "git": git.get("revision"),
        "git_had_changes": changed,
        "trained_with": {name: (environment.get("packages") or {}).get(name) for name in _PACKAGES},
        "hardware": environment.get("hardware"),
        "data": identities,
        "cards": cards(run.folder),
    }


def cards(folder: Path) -> dict[str, dict[str, Any]]:
    """What the cards of a run's data sets say of origin and licence, by name and version."""
    found = {}
    for path in sorted((folder / "data").glob("*.json")):
        try:
            card = read_json(path)
        except ConfigError:
            continue  # a card that is damaged is no reason to lose the model
        if isinstance(card, dict):
            found[path.stem] = {name: card.get(name) for name in ("description", "origin", "licence", "access")}
    return found


def model_card(
    signature: Signature,
    facts: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, float]],
    licence: str,
    description: str,
    largest: float,
) -> str:
    """MODEL_CARD.md."""
    takes = [f"- `{each.name}`: {each.kind}{_details(each.to_json())}" for each in signature.inputs]
    gives = [f"- `{each.name}`: {each.dtype} {list(each.shape)}{_classes(each.classes)}" for each in signature.outputs]
    table = ["| split | metric | value |", "|---|---|---|"]
    for split, values in scores.items():
        table += [f"| {split} | {name} | {number(value)} |" for name, value in values.items()]
    data = [f"- {name}: {card['description']} Licence: {card['licence']}" for name, card in facts["cards"].items()]
    revision = f"{facts['git'] or 'unknown'}{', with changes' if facts['git_had_changes'] else ''}"
    return "\n".join(
        [
            f"# {signature.name}",
            "",
            description or "What it is for is not said: write it here before others use it.",
            "",
            "## Takes",
            "",
            *takes,
            "",
            "## Gives",
            "",
            *gives,
            "",
            "## Evaluation",
            "",
            *(table if scores else ["None was made."]),
            "",
            "By the metrics of training, on splits that the run names. They say nothing of other data: see",
            "`reference.json` for what these look like.",
            "",
            "## Where it comes from",
            "",
            f"- run `{facts['run']}`, step {facts['step']}, fingerprint `{facts['fingerprint']}`",
            f"- code: git {revision}",
            f"- licence: {licence}",
            *(data or ["- data: no card; `manifest.json` has their identities"]),
            "",
            "## What to know",
            "",
            "- Weights are in clear: whoever has this folder, or a page that runs the model, can read them.",
            f"- Largest difference of the graph from the live model on the golden examples: {largest:.1e}.",
            "- Inputs that `signature.json` does not take are refused; others get an answer, however odd they are.",
            "",
        ]
    )


def described(run: Run) -> str:
    """The docstrings of the experiment's file and function in the run's folder, which is read as text alone."""
    origin = run.saved.get("origin") or ""
    file, _, function = origin.rpartition(":")
    path = run.folder / Path(file).name
    if not file or not path.is_file():
        return ""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return ""
    made = next((each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == function), None)
    texts = [ast.get_docstring(tree) or "", "" if made is None else ast.get_docstring(made) or ""]
    return "\n\n".join(text.partition("\n\n")[0] for text in texts if text)


def _environment(folder: Path) -> Mapping[str, Any]:
    try:
        found = read_json(folder / "environment.json")
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}


def _details(fields: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in fields.items() if name not in ("name", "kind", "tensor", "values")}
    return "".join(f", {name} {value}" for name, value in shown.items())


def _classes(classes: tuple[str, ...]) -> str:
    return f", of {', '.join(classes)}" if classes else ""
