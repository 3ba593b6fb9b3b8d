"""Skills that Brazilian primary schools teach, in Portuguese: the national curriculum, from the `bncc` package."""

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.base.packages import pinned_content
from jaxtrain.data.sources.base import Example, Source

SKILLS_SHA256 = "892f7131657ed8706877b066c391b24cc5906c1359ec57ce68603e1b49851dfc"
"""The hash of ensino-fundamental.json in bncc 0.5.1."""

SUBJECTS = {
    "ar": "arte",
    "ci": "ciências",
    "ef": "educação física",
    "er": "ensino religioso",
    "ge": "geografia",
    "hi": "história",
    "li": "língua inglesa",
    "lp": "língua portuguesa",
    "ma": "matemática",
}
"""The last part of a skill's component, and the subject's name; a label is a position here."""


@dataclass(frozen=True)
class Skills(Source):
    """{"text": str, "label": int32, 0..8 as in SUBJECTS}: 1,304 skills of the BNCC of 2018, primary school (CC BY 4.0).

    Raises ConfigError for a missing package or a changed file.
    """

    def __len__(self) -> int:
        return len(_load())

    def __getitem__(self, index: int) -> Example:
        text, label = _load()[index]
        return {"text": text, "label": np.int32(label)}

    def identity(self) -> str:
        """The file's sha256, which is checked when it is read."""
        return f"bncc:{SKILLS_SHA256[:16]}"


@lru_cache(maxsize=1)
def _load() -> list[tuple[str, int]]:
    content = pinned_content("bncc==0.5.1", "bncc/dados/ensino-fundamental.json", SKILLS_SHA256)
    subjects = list(SUBJECTS)
    skills = json.loads(content)["habilidades"]
    return [(skill["texto"], subjects.index(skill["componente"].removeprefix("ef-comp-"))) for skill in skills]
