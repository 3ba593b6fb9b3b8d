"""Golden examples: raw inputs with the outputs that every runtime has to give for them. Needs no jax.

JSON has neither bytes nor NaN: these are {"base64": …} and {"float": "nan"}. Not here: who computes the outputs.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.inputs import Category, Input, Text, TokenIds
from jaxtrain.deploy.numeric import Audio, Number, NumericInput
from jaxtrain.deploy.signature import FORMAT, Row, Signature, check_format
from jaxtrain.deploy.values import np_dtype, quoted

TOLERANCE = 1e-4
"""How far outputs in f32 may be from the expected ones: as `rtol` and `atol` of `numpy.allclose`."""

TEXTS = {
    "Portuguese": "Adorei! Se eu pudesse dar 1000 estrelas não daria nenhuma :)",
    "English": "I loved it! If I could give it 1000 stars I would not give any :)",
    "empty": "",
    "one letter": "a",
    "spaces": " \t\r\n ",
    "emoji": "🙂🙃 👩‍👩‍👧‍👦 🇧🇷 ½",
    "accents apart": "Sa\u0303o Paulo, cafe\u0301",
    "right to left": "שלום עולם, مرحبا",
    "no UTF-8": b"\xff\xfe broken \xe9\x80 bytes \xc3",
    "upper case": "THE BEST FILM I HAVE EVER SEEN",
    "markup": '<br /><b>10/10</b> & "quoted"',
}
"""Texts that are seldom in a test split."""

EXTREME = 1e30


@dataclass(frozen=True)
class GoldenExample:
    """A raw input, and the outputs for it by name: arrays without the dim of rows."""

    name: str
    inputs: Row
    outputs: Mapping[str, np.ndarray]


def golden_json(examples: Sequence[GoldenExample]) -> dict[str, Any]:
    """The content of golden.json."""
    made = [{"name": each.name, "inputs": encoded(each.inputs), "outputs": encoded(each.outputs)} for each in examples]
    return {"format": FORMAT, "tolerance": TOLERANCE, "examples": made}


def golden_examples(value: Any, signature: Signature, where: str) -> list[GoldenExample]:
    """Those of golden.json. Raises ConfigError for what `golden_json` does not write."""
    if not isinstance(value, dict) or not isinstance(value.get("examples"), list) or not value["examples"]:
        raise ConfigError(f"{where}: it holds no examples")
    check_format(value, where)
    found = []
    for number, each in enumerate(value["examples"]):
        try:
            outputs = {
                out.name: np.asarray(decoded(each["outputs"][out.name]), np_dtype(out.dtype))
                for out in signature.outputs
            }
            found.append(GoldenExample(str(each["name"]), decoded(dict(each["inputs"])), outputs))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{where}: example {number} is none: {error!r}") from error
        for out in signature.outputs:
            if found[-1].outputs[out.name].shape != out.shape:
                raise ConfigError(f"{where}: example {number}: {out.name!r} is not of shape {list(out.shape)}")
    return found


def encoded(value: Any) -> Any:
    """A value as JSON."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {name: encoded(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return encoded((value if value.dtype.kind in "biuf" else value.astype(np.float32)).tolist())
    if isinstance(value, list | tuple):
        return [encoded(part) for part in value]
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def decoded(value: Any) -> Any:
    """The value of JSON that `encoded` made. Raises ValueError for bytes or a number that are none."""
    if isinstance(value, dict) and value.keys() == {"base64"}:
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, TypeError) as error:
            raise ValueError(f"it is no base64: {error}") from error
    if isinstance(value, dict) and value.keys() == {"float"}:
        if value["float"] not in ("nan", "inf", "-inf"):
            raise ValueError(f"{quoted(value)} is no number: nan, inf or -inf")
        return float(value["float"])
    if isinstance(value, dict):
        return {name: decoded(part) for name, part in value.items()}
    return [decoded(part) for part in value] if isinstance(value, list) else value


def odd_rows(signature: Signature, usual: Row) -> dict[str, Row]:
    """Raw inputs that real data seldom hold, by what is odd: `usual` with another value of one input."""
    return {
        f"{each.name}: {what}": {**usual, each.name: value}
        for each in signature.inputs
        for what, value in _odd(each, usual[each.name]).items()
        if _is_taken(each, value)
    }


def _odd(kind: Input, usual: Any) -> dict[str, Any]:
    if isinstance(kind, Text):
        cut = "x" * (kind.bytes - 1) + "🙂"  # through the middle of a letter
        return {**TEXTS, "very long": "A very long text. " * (3 * kind.bytes // 18 + 1), "cut in a letter": cut}
    if isinstance(kind, TokenIds):
        texts = {what: text for what, text in TEXTS.items() if isinstance(text, str)}
        return {**texts, "very long": "A very long text. " * (kind.length + 1)}
    if isinstance(kind, Number):
        most = float(1 << 24) if kind.integer else EXTREME
        return {"zero": 0.0, "very large": most, "very small": -most, "missing": None}
    if isinstance(kind, Category):
        values = {f"value {value}": value for value in kind.values[:8]}
        numbers = [value for value in kind.values if isinstance(value, int)]
        return {**values, "unknown": max(numbers) + 1 if numbers else "never seen"}
    if isinstance(kind, Audio):
        silence = np.zeros(kind.samples, np.float32)
        click = silence.copy()
        click[kind.samples // 2] = 1
        return {"silence": silence, "click": click, "very loud": silence + 1e4}
    assert isinstance(kind, NumericInput)
    low, high = kind.range or ((-EXTREME, EXTREME) if kind.dtype.startswith(("float", "bfloat")) else (0, 1))
    dtype = np_dtype(kind.dtype)
    whole = {what: np.full(kind.shape, value, dtype) for what, value in (("least", low), ("most", high))}
    mixed = np.resize(np.asarray([low, high], dtype), kind.shape)
    missing = {"missing": np.full(kind.shape, np.nan, dtype)} if kind.missing else {}
    reverse = {"turned around": np.ascontiguousarray(np.asarray(usual, dtype)[::-1])} if kind.shape else {}
    return {**whole, "least and most": mixed, **reverse, **missing}


def _is_taken(kind: Input, value: Any) -> bool:
    """Whether an input takes a value: some refuse a text that is empty, or a number that is missing."""
    try:
        kind.row(value)
    except ConfigError:
        return False
    return True


def first_difference(
    examples: Sequence[GoldenExample], outputs: Mapping[str, np.ndarray], tolerance: float = TOLERANCE
) -> str:
    """The first example whose outputs (rows on dim 0) are not the expected ones, with both; "" where there is none."""
    for number, each in enumerate(examples):
        for name, wanted in each.outputs.items():
            found = np.asarray(outputs[name][number], np.float64)
            wrong = ~np.isclose(found, wanted.astype(np.float64), rtol=tolerance, atol=tolerance, equal_nan=True)
            if wrong.any():
                at = tuple(int(i) for i in np.argwhere(wrong)[0])
                place = f"{name}{list(at)}" if at else name
                return (
                    f"of golden example {number} ({each.name}), {place} is {found[at]:.6g}, expected {wanted[at]:.6g}"
                )
    return ""


def largest_difference(examples: Sequence[GoldenExample], outputs: Mapping[str, np.ndarray]) -> float:
    """The largest difference of a finite output from the expected one, as a share of that where it is more than 1."""
    with np.errstate(invalid="ignore"):
        differences = [
            np.abs(np.asarray(outputs[name][number], np.float64) - wanted.astype(np.float64))
            / np.maximum(np.abs(wanted.astype(np.float64)), 1)
            for number, each in enumerate(examples)
            for name, wanted in each.outputs.items()
        ]
    return max((float(each[np.isfinite(each)].max(initial=0)) for each in differences), default=0.0)
