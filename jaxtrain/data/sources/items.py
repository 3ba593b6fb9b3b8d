"""Any object with a length and items as a source."""

from dataclasses import dataclass, field
from typing import Any

from jaxtrain.base.config import IN_MEMORY
from jaxtrain.data.sources.base import Example, Source


@dataclass(frozen=True, eq=False)
class Items(Source):
    """Any object with `__len__` and `__getitem__` that returns examples, identified by a name that you choose.

    Only the name is in the fingerprint: change it when the items change. The object is pickled to worker processes.
    Two `Items` are equal only if they are the same object.
    """

    items: Any = field(metadata=IN_MEMORY, repr=False)
    name: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return dict(self.items[index])

    def identity(self) -> str:
        return f"items:{self.name}"
