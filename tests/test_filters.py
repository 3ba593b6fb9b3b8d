import math
import re
import sys

import numpy as np
import pytest

from jaxtrain.base.config import check_types, from_json, to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.datasets.bundled.bncc import Skills
from jaxtrain.datasets.bundled.reviews import MovieReviews
from jaxtrain.datasets.filters import text as filters
from jaxtrain.datasets.filters.base import Filter, Record
from jaxtrain.datasets.filters.duplicates import ExactDuplicates, LabelConflicts, Leaks, NearDuplicates
from jaxtrain.datasets.filters.near import near_pairs
from jaxtrain.datasets.filters.text import BrokenEncoding, Language, MendEncoding
from jaxtrain.datasets.filters.values import InRange, Length, NotEmpty

PORTUGUESE = [
    "A sessão começou às nove e ninguém saiu antes do último crédito.",
    "O diretor não esconde a emoção quando fala da infância no sertão.",
    "Há três canções inéditas, e a última é de longe a mais bonita.",
    "Não é um filme fácil: a memória e a solidão ocupam cada cena.",
    "O elenco é ótimo, mas o roteiro tropeça no capítulo final.",
    "Depois da projeção, a discussão continuou até o amanhecer.",
    "A atriz já ganhou dois prêmios e merecia também este troféu.",
]


def records(texts, splits=None, **columns) -> list[Record]:
    rows = [dict(zip(("text", *columns), row, strict=True)) for row in zip(texts, *columns.values(), strict=True)]
    return [Record(i, splits[i] if splits else "train", row) for i, row in enumerate(rows)]


def found(one: Filter, *args, **columns) -> list[int]:
    return sorted(one.findings(records(*args, **columns)))


def edited(text: str, number: int) -> str:
    """The text with a few words changed: one in fifty, and one at least."""
    words = text.split()
    for place in range(number % 40, len(words), 50):
        words[place] = f"changed{number}"
    return " ".join([*words[:-1], f"ending{number}"])


class Planted:
    """A clean set of reviews, faults added to it, and what each filter finds when they are applied one by one."""

    def __init__(self) -> None:
        source = MovieReviews("train")
        clean = [source[i] for i in range(0, len(source), 19)]
        # 3 % of the reviews hold dashes and quotes of Windows-1252 that were read as Latin-1: broken, but not planted.
        clean = [example for example in clean if not re.search("[\x80-\x9f]", example["text"])][:1000]
        assert len(clean) == 1000
        self.clean = [Record(i, ("train", "validation", "test")[i % 3], dict(row)) for i, row in enumerate(clean)]
        rows: list[Record] = list(self.clean)
        self.faults: dict[str, set[int]] = {}

        def plant(name: str, numbers: range, change, split: str | None = None) -> None:
            self.faults[name] = set()
            for number in numbers:
                base = rows[number]
                made = Record(len(rows), split or base.split, {**base.example, **change(base.example, number)})
                self.faults[name].add(made.index)
                rows.append(made)

        plant("exact", range(0, 50), lambda row, _: {})
        plant("near", range(100, 150), lambda row, number: {"text": edited(row["text"], number)})
        plant("leak", range(202, 262, 3), lambda row, number: {"text": edited(row["text"], number)}, split="train")
        sentences = (f"{one} {other}" for one in PORTUGUESE for other in PORTUGUESE if one != other)
        broken = [text.encode().decode("latin-1") for text, _ in zip(sentences, range(30), strict=False)]
        plant("mojibake", range(300, 330), lambda _, number: {"text": broken[number - 300]})
        plant(
            "conflict", range(400, 420), lambda row, _: {"text": f" {row['text'].upper()}\n", "label": 1 - row["label"]}
        )
        self.faults["conflict"] |= set(range(400, 420))
        self.found = {}
        for name, one in {
            "mojibake": BrokenEncoding("text"),
            "conflict": LabelConflicts("text", "label"),
            "exact": ExactDuplicates(("text", "label")),
            "leak": Leaks("text"),
            "near": NearDuplicates("text"),
        }.items():
            self.found[name] = one.findings(rows)
            rows = [row for row in rows if row.index not in self.found[name]]
        self.left = rows


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.mark.parametrize("fault", ["exact", "near", "leak", "mojibake", "conflict"])
def test_planted_faults_are_found_without_a_false_alarm(planted, fault):
    expected, got = planted.faults[fault], planted.found[fault].keys()
    assert len(expected & got) >= 0.95 * len(expected)
    assert len(got - expected) == 0


def test_what_is_left_after_the_filters_holds_no_near_duplicates(planted):
    assert near_pairs(planted.left, "text") == []


def test_a_planted_fault_is_told_with_the_record_that_it_repeats(planted):
    assert planted.found["exact"][1003].other == 3
    assert planted.found["exact"][1003].why == "same as record 3"
    assert planted.found["near"][1050].other == 100
    assert re.fullmatch(r"similarity 0\.[789]\d to record 100", planted.found["near"][1050].why)
    assert planted.found["leak"][1101].other == 205
    assert "to record 205 of validation" in planted.found["leak"][1101].why
    assert planted.found["conflict"][400].other == 1150
    assert "record 1150 has this text and label" in planted.found["conflict"][400].why
    assert "'A sessÃ£o " in planted.found["mojibake"][1120].why
    assert "should be 'A sessão " in planted.found["mojibake"][1120].why


def test_good_text_raises_no_alarm():
    skills = [Skills()[i]["text"] for i in range(len(Skills()))]
    reviews = [MovieReviews("test")[i]["text"] for i in range(0, 2500, 5)]
    assert found(Language("text", ("pt",)), skills) == []
    assert found(Language("text", ("en",)), reviews) == []
    assert found(BrokenEncoding("text"), skills) == []


# Each filter by itself.


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a", None),
        (" \n\t", "empty"),
        ("", "empty"),
        (b"", "empty"),
        (b" x", None),
        (None, "None"),
        (math.nan, "NaN"),
        (0.0, None),
        (np.float32("nan"), "NaN"),
        (np.zeros(0), "empty"),
        (np.array([math.nan]), None),
    ],
)
def test_not_empty_finds_values_that_say_nothing(value, why):
    got = NotEmpty("text").findings(records([value]))
    assert [finding.why for finding in got.values()] == [why] * (why is not None)


def test_length_counts_the_characters_of_text_and_the_bytes_of_bytes():
    one = Length("text", 3, 5)
    assert found(one, ["ab", "abc", "abcde", "abcdef", "maçã", "ação!x"]) == [0, 3, 5]
    assert found(one, ["maçã".encode(), b"abc", b"ab"]) == [0, 2]
    assert one.findings(records(["ab"]))[0].why == "2 characters, not 3 to 5"
    assert one.findings(records(["maçã".encode()]))[0].why == "6 bytes, not 3 to 5"
    with pytest.raises(ConfigError, match="field 'text' holds a int, not text"):
        one.findings(records([3]))


def test_language_finds_what_is_in_another_and_leaves_short_texts_alone():
    texts = [
        "This film was far too long, and nobody in the cinema laughed once.",
        " ".join(PORTUGUESE[:2]),
        "Der Film war leider ziemlich langweilig und viel zu lang für seine Geschichte.",
        "A sessão começou às nove.",
        "Suzuki, Kawai, Higuchi, Katsuya Terada, Mako Hyodo, Koichi Yamadera and Kenji Tanaka. " * 3
        + "It is hard to say what this strange and funny film wants to tell us about the years after the war. " * 3,
    ]
    texts.append("It is hard to say what this film wants. " * 5 + texts[2] * 9)  # its first 200 characters decide
    assert found(Language("text", ("en",)), texts) == [1, 2]
    assert found(Language("text", ("en", "pt")), texts) == [2]
    assert found(Language("text", ("en",), shortest=10), texts) == [1, 2, 3]
    assert Language("text", ("en", "pt")).findings(records(texts))[2].why == "language de, not en or pt"
    with pytest.raises(ConfigError, match="Language: 'por' is not known"):
        Language("text", ("por",)).findings(records(texts))


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (PORTUGUESE[0], False),
        ("Ótimo filme! 😀👍🏽 Não perca — “imperdível”, dizem…", False),
        ("Füße, naïve, Ærø, Łódź, Ñandú, 東京, Привет, ½ · © € ™", False),
        ("lost \ufffd character", True),
        (PORTUGUESE[0].encode().decode("cp1252", "replace"), True),
        (PORTUGUESE[3].encode().decode("latin-1").encode().decode("latin-1"), True),
        ("too much fun \x97 nobody minds", True),
        ("sessão".encode("latin-1"), True),
        ("sessão".encode(), False),
        ("plain", False),
    ],
)
def test_broken_encoding_finds_what_was_decoded_wrongly_and_nothing_else(text, broken):
    assert found(BrokenEncoding("text"), [text]) == [0] * broken


def test_mending_gives_back_what_was_decoded_wrongly_and_leaves_the_rest():
    mend, rng = MendEncoding("text"), np.random.default_rng(0)
    for text in (*PORTUGUESE, "naïve café 🙂", "plain"):
        assert mend({"text": text}, rng)["text"] == text
        assert mend({"text": text.encode().decode("latin-1")}, rng)["text"] == text


def test_in_range_finds_numbers_outside_and_nan():
    one = InRange("text", 0, 9.5)
    assert found(one, [0, 9.5, -1, 10, math.nan, np.int32(4), math.inf]) == [2, 3, 4, 6]
    arrays = [np.array([0.0, 9.5]), np.array([1.0, math.nan]), np.array([[10, 11], [1, -3]]), np.zeros(0)]
    assert found(one, arrays) == [1, 2]
    assert one.findings(records(arrays))[2].why == "10 and 2 more not in 0…9.5"
    assert found(InRange("text", None, 5), [-1e9, 6, math.nan]) == [1, 2]
    assert found(InRange("text", 5, None), [-1e9, 6, math.inf]) == [0]
    with pytest.raises(ConfigError, match="field 'text' holds a str, not numbers"):
        one.findings(records(["3"]))


def test_exact_duplicates_keeps_the_first_and_compares_all_of_its_fields():
    rows = records(["a", "b", "a", "a", "A"], label=[0, 0, 1, 0, 0], image=[np.zeros(2)] * 4 + [np.zeros(3)])
    assert sorted(ExactDuplicates(("text",)).findings(rows)) == [2, 3]
    assert sorted(ExactDuplicates(("text", "label")).findings(rows)) == [3]
    assert sorted(ExactDuplicates(("image",)).findings(rows)) == [1, 2, 3]
    assert {finding.other for finding in ExactDuplicates(("text",)).findings(rows).values()} == {0}


def test_label_conflicts_finds_all_texts_that_have_two_labels():
    rows = records(
        ["Bom  filme", "bom filme ", "BOM\nFILME", "mau", "mau", "bom filmes"],
        label=np.array([1, 0, 1, 0, 0, 0], np.int32),
    )
    got = LabelConflicts("text", "label").findings(rows)
    assert {index: finding.other for index, finding in got.items()} == {0: 1, 1: 0, 2: 1}
    assert got[1].why == "label 0, but record 0 has this text and label 1"


BASE = " ".join(f"word{i}" for i in range(100))


def test_near_duplicates_keeps_the_first_and_what_is_near_to_dropped_ones_only():
    chain = [" ".join(f"word{i}" for i in range(shift, shift + 100)) for shift in (0, 14, 28)]
    assert [pair[:2] for pair in near_pairs(records(chain), "text")] == [(0, 1), (1, 2)]
    assert found(NearDuplicates("text"), chain) == [1]
    got = NearDuplicates("text").findings(records([chain[1], chain[0], chain[1].upper(), chain[1]]))
    assert {index: finding.other for index, finding in got.items()} == {1: 0, 2: 0, 3: 0}
    got = NearDuplicates("text").findings(records([chain[0], chain[2], chain[1]]))
    assert {index: finding.other for index, finding in got.items()} == {2: 0}
    got = NearDuplicates("text").findings(records([chain[0], chain[1], chain[1]]))
    assert {index: finding.other for index, finding in got.items()} == {1: 0, 2: 0}


def test_leaks_drops_from_other_splits_only():
    near = BASE.replace("word50", "other")
    texts = [BASE, near, BASE, BASE, "quite another text", near]
    splits = ["train", "train", "test", "validation", "train", "test"]
    assert found(Leaks("text"), texts, splits) == [0, 1]
    assert found(Leaks("text", keep=("test",)), texts, splits) == [0, 1, 3]
    assert found(Leaks("text"), texts, ["train"] * 6) == []
    assert Leaks("text").findings(records(texts, splits))[0].other == 2


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_near_pairs_finds_the_pairs_above_the_threshold_and_their_true_likeness(threshold):
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(150):
        words = ["again"] * 9 + [f"w{number}" for number in rng.integers(0, 10_000, 60)]
        cut = int(rng.integers(1, 40))
        texts += [
            " ".join(words),
            " ".join([*words[:-cut], *(f"v{number}" for number in rng.integers(0, 10_000, cut))]),
        ]
    sets = [{tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (text.split() for text in texts)]
    truth = {(i, i + 1): len(sets[i] & sets[i + 1]) / len(sets[i] | sets[i + 1]) for i in range(0, 300, 2)}
    truth = {pair: likeness for pair, likeness in truth.items() if likeness >= threshold}
    got = {(one, other): likeness for one, other, likeness in near_pairs(records(texts), "text", threshold)}
    assert len(got) >= 0.95 * len(truth) > 0
    assert got == pytest.approx({pair: truth[pair] for pair in got})


def test_near_pairs_holds_all_copies_and_does_not_depend_on_the_order_of_records():
    near = BASE.replace("word50", "other")
    rows = records([BASE, "quite another text", near, BASE, BASE.upper() + "!"])
    pairs = near_pairs(rows, "text")
    assert [pair[:2] for pair in pairs] == [(0, 2), (0, 3), (0, 4), (2, 3), (2, 4), (3, 4)]
    assert [pair[2] == 1 for pair in pairs] == [False, True, True, False, False, True]
    backwards = near_pairs(rows[::-1], "text")
    assert {(frozenset(pair[:2]), pair[2]) for pair in backwards} == {(frozenset(pair[:2]), pair[2]) for pair in pairs}


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("Não há ação", "não HÁ  ação!", True),
        ("Não há ação", "Na\u0303o ha\u0301 ac\u0327a\u0303o", True),
        ("“Bom” — filme", '"Bom" filme', True),
        ("Bom", "bom.", True),
        ("Bom", "Mau", False),
        ("bom filme", "filme bom", False),
        ("!!!", "???", False),
        ("", "", False),
        ("Привет мир мой", "привет, мир мой", True),
    ],
)
def test_likeness_sees_words_and_not_their_case_punctuation_or_composition(one, other, near):
    assert bool(near_pairs(records([one, other]), "text")) == near


# All of them.

ALL = [
    NotEmpty("txt"),
    Length("txt", 1, 2),
    Language("txt", ("en",)),
    BrokenEncoding("txt"),
    InRange("txt", 0, None),
    ExactDuplicates(("text", "txt")),
    NearDuplicates("txt"),
    Leaks("txt"),
    LabelConflicts("txt", "label"),
    LabelConflicts("text", "txt"),
]


@pytest.mark.parametrize("one", ALL, ids=lambda one: type(one).__name__)
def test_a_filter_of_an_unknown_field_names_the_nearest(one):
    with pytest.raises(ConfigError, match="record 0 has no field 'txt'; did you mean 'text'"):
        one.findings(records(["some text"]))


@pytest.mark.parametrize("one", ALL, ids=lambda one: type(one).__name__)
def test_a_filter_finds_nothing_among_no_records_and_comes_back_from_json(one):
    assert one.findings([]) == {}
    check_types(one)
    assert from_json(to_json(one)) == one


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Length("text", 3, 2), "Length: needs least <= most, got 3 and 2"),
        (lambda: Length("text", -1, 2), "Length.least: -1 is not at least 0"),
        (lambda: Language("text", ()), "name one or more languages"),
        (lambda: NearDuplicates("text", 0), "NearDuplicates.threshold: 0 is not above 0 and below 1"),
        (lambda: Leaks("text", 1.0), "Leaks.threshold: 1.0 is not above 0 and below 1"),
        (lambda: Leaks("text", keep=()), "name one or more splits to keep"),
        (lambda: ExactDuplicates(()), "name one or more fields"),
        (lambda: InRange("text", 2, 1), "InRange: needs low <= high, or one of them, got 2 and 1"),
        (lambda: InRange("text", None, None), "got None and None"),
        (lambda: InRange("text", math.nan, 1), "InRange.low: nan is not a finite number (None: no bound)"),
        (lambda: near_pairs([], "text", 2), "near_pairs: threshold must be above 0 and below 1, got 2"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("package", "one"),
    [
        ("ftfy", BrokenEncoding("text")),
        ("datasketch", NearDuplicates("text")),
        ("py3langid", Language("text", ("en",))),
    ],
)
def test_a_filter_without_its_library_says_how_to_install_it(monkeypatch, package, one):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    filters._identifier.cache_clear()
    with pytest.raises(ConfigError, match=rf"needs {package}: pip install 'jaxtrain\[datasets\]'"):
        one.findings(records(["ação e reação"]))
