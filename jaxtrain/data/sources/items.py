"""Any object with a length and items as a source."""

from dataclasses import dataclass, field
from typing import Any

from jaxtrain.base.config import IN_MEMORY
from jaxtrain.data.sources.base import Example, Source


@dataclass(frozen=True, eq=False)
class Items(Source):
    """Any object with `__len__` and `__getitem__` that returns examples, under a name that you choose.

    The name is all of it that the fingerprint holds: change it when the items change. The object is pickled to worker
    processes. Two `Items` are equal only where they are the same object.
    """

    items: Any = field(metadata=IN_MEMORY, repr=False)
    name: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return dict(self.items[index])

    def identity(self) -> str:
        return f"items:{self.name}"
