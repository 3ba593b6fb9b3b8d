"""What Brazilian schools teach, in Portuguese: the skills of the national curriculum, from the `bncc` package."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.base.cache import package_file
from jaxtrain.base.errors import ConfigError
from jaxtrain.data.sources.base import Example, Source

SHA256 = "892f7131657ed8706877b066c391b24cc5906c1359ec57ce68603e1b49851dfc"
"""Of ensino-fundamental.json in bncc 0.5.1."""

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

    Raises ConfigError for a missing package or a file that is not the pinned one.
    """

    def __len__(self) -> int:
        return len(_load())

    def __getitem__(self, index: int) -> Example:
        text, label = _load()[index]
        return {"text": text, "label": np.int32(label)}

    def identity(self) -> str:
        """The pinned file's sha256; reading checks that the file is that one."""
        return f"bncc:{SHA256[:16]}"


@lru_cache(maxsize=1)
def _load() -> list[tuple[str, int]]:
    file = package_file("bncc==0.5.1", "bncc/dados/ensino-fundamental.json")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ConfigError(f"{file} is not that of bncc 0.5.1: `pip install --force-reinstall bncc==0.5.1`")
    subjects = list(SUBJECTS)
    skills = json.loads(content)["habilidades"]
    return [(skill["texto"], subjects.index(skill["componente"].removeprefix("ef-comp-"))) for skill in skills]
