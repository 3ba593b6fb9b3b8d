"""Bundle folders of somebody who means harm or was careless: every one is loaded, or refused in one short message."""

import functools
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bundle import TEXTS, Made, forged, made, rewritten
from test_onnx import GRAPH

from jaxtrain import ConfigError
from jaxtrain.base.errors import Damaged
from jaxtrain.deploy.bundle import NEEDED, Bundle
from jaxtrain.deploy.inputs import Category, Tensor, Text, TokenIds
from jaxtrain.deploy.numeric import Array, Audio, Image, Number
from jaxtrain.deploy.signature import Signature
from jaxtrain.deploy.triton import config_pbtxt

Case = tuple[str, Callable[[Path], Any]]

JSON_FILES = ("manifest.json", "signature.json", "golden.json", "metrics.json")

WRONG = (None, True, 0, -1, 1.5, 2**62, 10**400, "", "x", "\ud800", "a" * 10**6, [], {}, [[]], [None], {"a": 1})
"""Values of JSON, of which a field takes few."""

SIZES = ([-1], [2**62], [2**31 - 1] * 3, ["batch", -1], ["batch", 2**62], ["batch", 0], [1.0], [True], [2**31] * 64)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("films"), TEXTS, "films")


def put(folder: Path, name: str, content: bytes) -> None:
    """A file of another content, with a manifest that knows of it."""
    if name == "manifest.json":
        (folder / name).write_bytes(content)
    else:
        rewritten(folder, name, content)


def changed(name: str, path: tuple[Any, ...], value: Any) -> Callable[[Path], None]:
    """What sets a value inside of a file of JSON."""

    def act(folder: Path) -> None:
        facts = json.loads((folder / name).read_text())
        *way, last = path
        inner = facts
        for part in way:
            inner = inner[part]
        inner[last] = value
        if name == "manifest.json":
            forged(folder, lambda facts: facts.update({path[0]: facts_of(facts, path, value)}))
        else:
            rewritten(folder, name, json.dumps(facts).encode())

    return act


def facts_of(facts: dict[str, Any], path: tuple[Any, ...], value: Any) -> Any:
    return value if len(path) == 1 else {**facts[path[0]], path[1]: value}


def texts() -> Iterator[Case]:
    """Files of JSON that hold something else, with hashes that are right."""
    contents = {
        "nothing": b"",
        "spaces": b" " * 1000,
        "zeros": bytes(1000),
        "null": b"null",
        "a number": b"1",
        "a text": b'"x"',
        "a list": b"[]",
        "UTF-16": "{}".encode("utf-16"),
        "Latin-1": b'{"\xe9": 1}',
        "NaN": b'{"format": NaN}',
        "1e400": b'{"format": 1e400}',
        "5000 digits": b'{"format": ' + b"9" * 5000 + b"}",
        "deep lists": b"[" * 100_000 + b"]" * 100_000,
        "deep objects": b'{"a":' * 200 + b"1" + b"}" * 200,
    }
    for name in JSON_FILES:
        for what, content in contents.items():
            if (name, what) != ("metrics.json", "nothing of it"):
                yield f"{name}: {what}", lambda folder, name=name, content=content: put(folder, name, content)

        def twice(folder: Path, name: str = name) -> None:
            put(folder, name, b'{"format": 1,' + (folder / name).read_bytes().lstrip()[1:])

        yield f"{name}: a key twice", twice


def places() -> Iterator[Case]:
    """Something else than a file."""
    others: dict[str, Callable[[Path], Any]] = {
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a link": lambda path: path.symlink_to("/etc/hostname"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to an endless file": lambda path: path.symlink_to("/dev/zero"),
        "nothing": lambda path: None,
    }
    for name in (*NEEDED, "manifest.json", "experiment.json", "MODEL_CARD.md", "../config.pbtxt"):
        for what, other in others.items():

            def act(folder: Path, name: str = name, other: Callable[[Path], Any] = other) -> None:
                (folder / name).unlink()
                other(folder.parent / "config.pbtxt" if name.startswith("..") else folder / name)

            yield f"{name}: {what}", act


def manifests() -> Iterator[Case]:
    """Manifests that are sealed as whoever forges one would."""
    for key in ("format", "name", "version", "created_by", "lineage", "licence", "files"):
        kind = {"format": int, "created_by": dict, "lineage": dict, "files": dict}.get(key, str)
        for value in WRONG:
            if type(value) is not kind or key in ("format", "name", "lineage", "files"):
                yield f"{key} is {value!r:.20}", changed("manifest.json", (key,), value)
        yield f"no {key}", lambda folder, key=key: forged(folder, lambda facts: facts.pop(key))
    names = ("/abs", "../x", "a\0b", "a/../b", "x" * 5000, "\ud800", "a\nb", "signature.json/x", "golden.json/", "‮")
    for name in (*names, "none.txt"):
        yield f"names {name!r:.20}", changed("manifest.json", ("files", name), {"bytes": 1, "sha256": "0" * 64})
    entries: tuple[Any, ...] = (None, [], {}, {"bytes": -1, "sha256": "x"}, {"bytes": 10**30, "sha256": "x"})
    for entry in (*entries, {"bytes": True, "sha256": "x"}, {"bytes": 1.0, "sha256": "x"}, {"bytes": "1", "sha256": 1}):
        yield f"an entry {entry}", changed("manifest.json", ("files", "golden.json"), entry)


def signatures() -> Iterator[Case]:
    """Fields of signature.json, with a config.pbtxt of the same where that can be made."""
    for path in (("name",), ("max_batch",), ("inputs",), ("tensors",), ("outputs",), ("generation",)):
        allowed = {"max_batch": (), "generation": (None, {}, {"a": 1})}.get(path[0], ())
        for value in WRONG:
            if value not in allowed:
                yield f"signature {path} is {value!r:.20}", changed("signature.json", path, value)
    fields = {
        "inputs": ("name", "kind", "tensor", "bytes", "keep", "least", "more"),
        "tensors": ("name", "dtype", "shape", "classes", "more"),
        "outputs": ("name", "dtype", "shape", "classes", "more"),
    }
    for part, names in fields.items():
        for name in names:
            for value in (*WRONG, *SIZES):
                if (name, value) not in (("least", 0), ("least", False), ("classes", [])):
                    yield f"{part}.{name} is {value!r:.20}", changed("signature.json", (part, 0, name), value)

    def huge(folder: Path) -> None:
        facts = json.loads((folder / "signature.json").read_text())
        facts["inputs"][0]["bytes"] = 2**31 - 1
        facts["tensors"][0]["shape"] = ["batch", 2**31 - 1]
        rewritten(folder, "signature.json", json.dumps(facts).encode())
        (folder.parent / "config.pbtxt").write_text(config_pbtxt(Signature.from_json(facts)))

    yield "2 GiB a row", huge


def goldens() -> Iterator[Case]:
    """Golden examples."""
    for value in (*WRONG, {"base64": "!"}, {"base64": 1}, {"float": "x"}, {"float": [1]}, {"float": None}):
        yield f"examples are {value!r:.20}", changed("golden.json", ("examples",), value)
        yield f"an example is {value!r:.20}", changed("golden.json", ("examples", 0), value)
        yield f"inputs are {value!r:.20}", changed("golden.json", ("examples", 0, "inputs"), value)
        yield f"outputs are {value!r:.20}", changed("golden.json", ("examples", 0, "outputs"), value)
        where = ("examples", 0, "outputs", "probabilities")
        yield f"an output is {value!r:.20}", changed("golden.json", where, value)
        if not isinstance(value, str) or value == "\ud800":
            yield f"an input is {value!r:.20}", changed("golden.json", ("examples", 0, "inputs", "text"), value)


def weights() -> Iterator[Case]:
    """Headers of safetensors."""

    def header(change: Callable[[dict[str, Any], str, bytes], Any]) -> Callable[[Path], None]:
        def act(folder: Path) -> None:
            content = (folder / "weights.safetensors").read_bytes()
            start = 8 + struct.unpack("<Q", content[:8])[0]
            facts, data = json.loads(content[8:start]), content[start:]
            more = change(facts, next(name for name in facts if name != "__metadata__"), data) or b""
            text = json.dumps(facts).encode()
            rewritten(folder, "weights.safetensors", struct.pack("<Q", len(text)) + text + data + more)

        return act

    for value in (*WRONG, *SIZES, [2**62, 0], [0, 2**62], [8, 0], "F8_E4M3", "F4", "C64", "F64", "I32"):
        for key in ("dtype", "shape", "data_offsets"):
            yield (
                f"{key} is {value!r:.20}",
                header(lambda facts, name, data, key=key, value=value: facts[name].update({key: value})),
            )
        yield f"an entry is {value!r:.20}", header(lambda facts, name, data, v=value: facts.update({name: v}))
    yield "two at one place", header(lambda facts, name, data: facts.update(more=facts[name]))
    inside = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    yield "one inside of another", header(lambda facts, name, data: facts.update(more=inside))

    def after(data: bytes) -> dict[str, Any]:
        return {"dtype": "F32", "shape": [], "data_offsets": [len(data), len(data) + 4]}

    yield "one more", header(lambda facts, name, data: facts.update({"params/../x": after(data)}) or bytes(4))
    yield "one less", header(lambda facts, name, data: facts.pop(name) and None)
    for what, change in {
        "no header": lambda content: bytes(8),
        "a header of 2^63 bytes": lambda content: struct.pack("<Q", 2**63) + content[8:],
        "a header that is too long": lambda content: struct.pack("<Q", len(content)) + content[8:],
        "a deep header": lambda content: struct.pack("<Q", 10**5) + b"[" * 10**5,
        "a key twice": lambda content: content.replace(b'{"', b'{"__metadata__":{},"', 1),
        "a bit more": lambda content: content + b"\0",
        "a bit less": lambda content: content[:-1],
        "pickle": lambda content: b"\x80\x04cposix\nsystem\n.",
    }.items():

        def act(folder: Path, change: Callable[[bytes], bytes] = change, longer: int = 18 * (what == "a key twice")):
            content = change((folder / "weights.safetensors").read_bytes())
            size = struct.unpack("<Q", content[:8])[0] + longer
            rewritten(folder, "weights.safetensors", struct.pack("<Q", size % 2**64) + content[8:])

        yield f"weights: {what}", act


def graphs() -> Iterator[Case]:
    """Bytes of the graph."""
    for what, change in {
        "nothing": lambda content: b"",
        "half": lambda content: content[: len(content) // 2],
        "zeros": lambda content: bytes(len(content)),
        "ones": lambda content: b"\xff" * len(content),
        "pickle": lambda content: b"\x80\x04cposix\nsystem\n.",
    }.items():
        yield (
            f"graph: {what}",
            lambda folder, change=change: rewritten(
                folder, "model.stablehlo", change((folder / "model.stablehlo").read_bytes())
            ),
        )

    for seed in range(1, 12):

        def flipped(folder: Path, seed: int = seed) -> None:
            content, rng = bytearray((folder / "model.stablehlo").read_bytes()), random.Random(seed)
            for _ in range(4 * seed):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            rewritten(folder, "model.stablehlo", bytes(content))

        yield f"graph: {4 * seed} bits", flipped


def test_a_graph_of_onnx_of_other_arrays_is_refused_before_a_row_is_made(films, tmp_path):
    folder = Path(shutil.copytree(films.out, tmp_path / "out")) / "films" / "1"
    rewritten(folder, "model.onnx", GRAPH)  # of x and y
    with pytest.raises(Damaged, match=r"model.onnx: it takes or gives other arrays than signature.json says"):
        Bundle(folder, backend="onnx")
    rewritten(folder, "model.onnx", GRAPH[:-10])
    with pytest.raises(Damaged, match=r"model.onnx: ONNX Runtime .* cannot load it"):
        Bundle(folder, backend="onnx")


class Raises:
    """Whose text is a bug."""

    def __repr__(self) -> str:
        raise KeyError("repr")


CYCLE: list[Any] = []
CYCLE.append(CYCLE)

PNG = b"\x89PNG\r\n\x1a\n"

VALUES: dict[str, Any] = {
    "nothing": None,
    "an object": {},
    "a class": dict,
    "an object with a bug": Raises(),
    "a list that holds itself": CYCLE,
    "a deep list": functools.reduce(lambda inner, _: [inner], range(5000), 1),
    "lists that differ": [[1], [1, 2]],
    "a number beyond i64": 2**70,
    "a number of 5000 digits": 10**5000,
    "a list of such": [10**5000],
    "complex": 1j,
    "infinity": float("inf"),
    "half a pair": "\ud800",
    "a long text": "a" * (1 << 26),
    "a long list": [0.5] * 10**6,
    "objects": np.array([{}, None], object),
    "records": np.zeros(3, [("a", int)]),
    "dates": np.array(["2026-01-01"], "datetime64[D]"),
    "texts": np.array(["a"]),
    "extended": np.zeros(2, np.longdouble),
    "a generator": (x for x in "ab"),
    "bytes": b"\xff",
    "half a PNG": PNG,
    "an array of no rows": np.zeros(0),
    "an array of many dims": np.zeros((1,) * 30),
}

KINDS = (
    Text(name="in", tensor="in", bytes=4, least=1),
    Number(name="in", tensor="in"),
    Number(name="in", tensor="in", integer=True),
    Category(name="in", tensor="in", values=("red", "blue")),
    Category(name="in", tensor="in", values=tuple(range(3))),
    Array(name="in", tensor="in", shape=(3,), dtype="float32"),
    Array(name="in", tensor="in", shape=(3,), dtype="bool"),
    Image(name="in", tensor="in", shape=(2, 2, 1), dtype="uint8", range=(0, 255)),
    Audio(name="in", tensor="in", samples=3, rate=8),
    TokenIds(name="in", tensor="in", tokenizer="t.json", length=3, least=1),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_raw_input_of_any_type_is_taken_or_refused_in_one_short_line(kind):
    signature = Signature("model", (kind,), (kind.spec(),), (Tensor("out", "float32", ()),))
    taken, said = set(), dict[str, str]()
    for what, value in VALUES.items():
        try:
            [row] = signature.tensors_of([{"in": value}])["in"]
            taken.add(what)
            assert (row.dtype.name, row.shape) == (kind.spec().dtype, kind.spec().shape)
        except ConfigError as error:
            said[what] = str(error)
    for what, message in said.items():
        assert message.startswith("input 'in': "), what
        assert len(message) < 300, what
        assert "\n" not in message, what
    texts = {"a long text", "bytes", "half a PNG"}
    assert taken == (texts if kind.kind == "text" else set())
    rows: tuple[Any, ...] = (None, 3, "text", [1], Raises())
    for row in rows:
        with pytest.raises(ConfigError, match="give an object with in, not "):
            signature.tensors_of([row])
    names: tuple[Any, ...] = ("i" * 10**6, "\ud800", 3, None)
    for name in names:
        with pytest.raises(ConfigError, match="there is no input ") as caught:
            signature.tensors_of([{name: 1}])
        assert len(str(caught.value)) < 300


SWEEPS = (texts, places, manifests, signatures, goldens, weights, graphs)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.__name__)
def test_a_folder_that_nobody_exported_is_refused_in_one_message_that_names_the_file(sweep, films, tmp_path, capsys):
    faults, count = [], 0
    assert Bundle(shutil.copytree(films.out, tmp_path / "whole")).name == "films"
    for count, (what, act) in enumerate(sweep(), 1):
        folder = Path(shutil.copytree(films.out, tmp_path / str(count), symlinks=True)) / "films" / "1"
        act(folder)
        before = sorted(path.name for path in folder.iterdir())
        try:
            Bundle(tmp_path / str(count))
            faults.append(f"{what}: it was loaded")
        except (ConfigError, Damaged) as error:
            if len(str(error)) > 1000 or "\n" in str(error) or str(tmp_path) not in str(error):
                faults.append(f"{what}: {str(error)[:200]}")
        except Exception as error:  # a bug, whatever it is
            faults.append(f"{what}: {error!r:.200}")
        if sorted(path.name for path in folder.iterdir()) != before:
            faults.append(f"{what}: something was written")
        shutil.rmtree(tmp_path / str(count))
    with capsys.disabled():
        print(f" {count} folders", end="")
    assert not faults, "\n".join(faults)
