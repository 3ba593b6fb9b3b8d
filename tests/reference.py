"""The models in numpy and float64, written from the papers: what the tests compare with. No jax, and no code of ours.

Everything is analytic, so complex numbers pass through: `gradient` differentiates by complex steps.

Shapes: L sequence, D width, H heads, G key/value heads, K head dim, E experts, V vocabulary.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def rms_norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Equation 4 of Zhang & Sennrich 2019, with an epsilon under the root."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def rotary(x_LHK: np.ndarray) -> np.ndarray:
    """Equation 34 of Su et al. 2021: pair k turned by position · 10000^(-2k/K); pair k is (k, k + K/2)."""
    L, _, K = x_LHK.shape
    angle = np.arange(L)[:, None, None] * 10_000.0 ** (-2 * np.arange(K // 2) / K)
    a, b = x_LHK[..., : K // 2], x_LHK[..., K // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)


def attention(q_LHK: np.ndarray, k_LGK: np.ndarray, v_LGK: np.ndarray, seen_LL: np.ndarray) -> np.ndarray:
    """Equation 1 of Vaswani et al. 2017 for pairs that are seen; H/G neighbouring heads share a key (Ainslie et al.)."""
    H, K = q_LHK.shape[1:]
    k_LHK, v_LHK = (np.repeat(x, H // x.shape[1], axis=1) for x in (k_LGK, v_LGK))
    scores = np.einsum("lhk,thk->hlt", q_LHK, k_LHK) / math.sqrt(K)
    weights = np.exp(scores - np.where(seen_LL, scores.real, -np.inf).max(-1, keepdims=True)) * seen_LL
    return np.einsum("hlt,thk->lhk", weights / weights.sum(-1, keepdims=True), v_LHK)


def swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Equation 6 of Shazeer 2020."""
    h = x @ gate
    return (h / (1 + np.exp(-h)) * (x @ up)) @ down


def experts(own: Any, x_LD: np.ndarray, chosen: int, room: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Every expert of every position, weighed by the softmax over those it chooses (0 for all others, and for those
    that `room` positions before it have filled), and beside them the shared ones; and the router's scores.
    """
    scores_LE = x_LD @ own["router"]["kernel"]
    of_chosen = scores_LE.real >= np.sort(scores_LE.real)[:, [-chosen]]
    weights_LE = np.exp(scores_LE) * of_chosen
    weights_LE = weights_LE / weights_LE.sum(-1, keepdims=True) * (np.cumsum(of_chosen, 0) <= room)
    kernels = zip(*(own[name]["kernel"] for name in ("gate", "up", "down")), strict=True)
    added = sum(weights_LE[:, [e]] * swiglu(x_LD, *kernel) for e, kernel in enumerate(kernels))
    if "shared_up" in own:
        added = added + swiglu(x_LD, *(own[f"shared_{name}"]["kernel"] for name in ("gate", "up", "down")))
    return added, scores_LE


def blocks(
    params: Any, x_LD: np.ndarray, heads: int, seen_LL: np.ndarray, chosen: int = 0, room: float = np.inf
) -> tuple[np.ndarray, list[Any]]:
    """Pre-norm blocks, and the router's scores in each: x + attention(norm x), then x + swiglu(norm x)."""
    L, routed = len(x_LD), []
    for own in layers(params["block"]):
        h = rms_norm(x_LD, own["norm_attention"]["scale"])
        q, k, v = (h @ own[name]["kernel"] for name in ("query", "key", "value"))
        K = q.shape[-1] // heads
        mixed = attention(rotary(q.reshape(L, -1, K)), rotary(k.reshape(L, -1, K)), v.reshape(L, -1, K), seen_LL)
        x_LD = x_LD + mixed.reshape(L, -1) @ own["attention_out"]["kernel"]
        h = rms_norm(x_LD, own["norm_mlp"]["scale"])
        if "experts" in own:
            added, scores_LE = experts(own["experts"], h, chosen, room)
            routed.append(scores_LE)
        else:
            added = swiglu(h, *(own[name]["kernel"] for name in ("gate", "up", "down")))
        x_LD = x_LD + added
    return x_LD, routed


def transformer(
    params: Any,
    ids_L: np.ndarray,
    heads: int,
    causal: bool = True,
    pooled: bool = False,
    segments_L: np.ndarray | None = None,
    chosen: int = 2,
    room: float = np.inf,
    lengths: tuple[int, ...] = (),
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits of a row, [L, V] or, where pooled over what is not padding, [V]; and the router's scores by layer.

    Embeddings go in times √D (Vaswani et al. 2017, section 3.4), and score outputs as they are (Press & Wolf 2017).
    """
    table_VD = params["embedding"]["table"]
    segments_L = ids_L != 0 if pooled else np.zeros(len(ids_L)) if segments_L is None else segments_L
    seen_LL = segments_L[:, None] == segments_L
    seen_LL &= np.tril(np.ones_like(seen_LL)) if causal else True
    x_LD = table_VD[ids_L] * math.sqrt(table_VD.shape[1])
    for n in lengths:
        own_VD = params["ngrams"]["table"]
        x_LD = x_LD + own_VD[suffix_rows(ids_L, n, len(own_VD), segments_L)] * math.sqrt(own_VD.shape[1])
    x_LD, routed = blocks(params["blocks"], x_LD, heads, seen_LL, chosen, room)
    x_LD = rms_norm(x_LD, params["norm"]["scale"])
    out = x_LD[ids_L != 0].mean(0) if pooled else x_LD
    return out @ (params["head"]["kernel"] if "head" in params else table_VD.T), routed


def suffix_rows(ids_L: np.ndarray, n: int, buckets: int, segments_L: np.ndarray) -> list[int]:
    """The row of the last n tokens at each position (Pagnoni et al. 2024, section 3.2.1): the last token first, token + 1
    or 0 for one that is missing, each followed by the finaliser of MurmurHash3; all modulo 2³².
    """
    rows = []
    for end in range(len(ids_L)):
        h = 0
        for place in range(end, end - n, -1):
            there = place >= 0 and segments_L[place] == segments_L[end]
            h = (h * 16777619 + (int(ids_L[place]) + 1 if there else 0) + 1) % 2**32
            h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
            h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
            h = h ^ h >> 16
        rows.append(h % buckets)
    return rows


def vit(params: Any, image_YXC: np.ndarray, heads: int, patch: int) -> np.ndarray:
    """Logits [O] of an image (Dosovitskiy et al. 2020, equation 1, with no class token): the mean over patches."""
    Y, X, _ = image_YXC.shape
    corners = [(y, x) for y in range(0, Y, patch) for x in range(0, X, patch)]
    cut = np.stack([image_YXC[y : y + patch, x : x + patch].ravel() for y, x in corners])
    x_LD = cut @ params["patches"]["kernel"] + params["positions"]
    x_LD, _ = blocks(params["blocks"], x_LD, heads, np.ones((len(cut), len(cut)), bool))
    return rms_norm(x_LD, params["norm"]["scale"]).mean(0) @ params["head"]["kernel"]


def ngrams(params: Any, text: bytes, order: int, words: int) -> np.ndarray:
    """Logits [O] of a text: rows of a table times √D, by hashes of 1 to `order` neighbouring words; the sum over √count.

    Hash: h ← h · 16777619 + byte + 1 over the bytes of a word (FNV's prime), likewise over the words of an n-gram, then
    the finaliser of MurmurHash3; all modulo 2³², at last modulo the rows of the table.
    """
    table_VD = params["table"]["table"]
    kept = re.findall(rb"[a-z0-9'\x80-\xff]+", text.lower())[:words]
    hashes = [functools.reduce(lambda h, byte: (h * 16777619 + byte + 1) % 2**32, word, 0) for word in kept]
    rows = []
    for start, n in itertools.product(range(len(kept)), range(1, order + 1)):
        if start + n <= len(kept):
            h = functools.reduce(lambda h, word: (h * 16777619 + word) % 2**32, hashes[start : start + n])
            h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
            h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
            rows.append((h ^ h >> 16) % len(table_VD))
    summed = table_VD[rows].sum(0) * math.sqrt(table_VD.shape[1])
    return summed / math.sqrt(max(len(rows), 1)) @ params["head"]["kernel"]


def balance_and_z(routed: list[np.ndarray], chosen: int) -> tuple[complex, complex]:
    """Of one row: Σ f·P of DeepSeek-V3 (equations 17–20) and the z-loss of Zoph et al. (equation 5), summed over layers."""
    balance = z = 0
    for scores_LE in routed:
        E = scores_LE.shape[1]
        top = np.exp(scores_LE)
        used = (scores_LE.real >= np.sort(scores_LE.real)[:, [-chosen]]).mean(0) * E / chosen
        balance = balance + (used * (top / top.sum(-1, keepdims=True)).mean(0)).sum()
        z = z + (np.log(top.sum(-1)) ** 2).mean()
    return balance, z


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[labels]."""
    shifted = logits - logits.real.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, labels[..., None], -1)[..., 0]


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` of every leaf of nested dicts."""
    if isinstance(tree, dict):
        return {name: mapped(function, tree[name], *(other[name] for other in others)) for name in tree}
    return function(tree, *others)


def layers(stacked: Any) -> Iterator[Any]:
    """The parameters of one block after another, from those stacked on a dim of layers (or on two: rounds, layers)."""
    lead = np.shape(stacked["norm_mlp"]["scale"])[:-1]
    for index in np.ndindex(*lead):
        yield mapped(lambda leaf, index=index: leaf[index], stacked)


def gradient(function: Callable[[Any], complex], params: Any) -> Any:
    """d function / d params of every entry, by complex steps (Squire & Trapp 1998): exact, as nothing is subtracted."""
    params = mapped(lambda leaf: np.array(leaf, complex), params)

    def of_leaf(leaf: np.ndarray) -> np.ndarray:
        grad = np.zeros(leaf.shape)
        for index in np.ndindex(*leaf.shape):
            leaf[index] += 1e-30j
            grad[index] = function(params).imag / 1e-30
            leaf[index] -= 1e-30j
        return grad

    return mapped(of_leaf, params)
