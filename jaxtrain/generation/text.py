"""Tokens of one row as a stream of text, which is cut within no character and ends before a stop text."""

from collections.abc import Sequence

import numpy as np

from jaxtrain.data.tokens.tokenizers import Tokenizer

_UNFINISHED = "\ufffd"
"""What bytes decode to that are no UTF-8, so also the first bytes of a character whose others are yet to come."""


class TextStream:
    """The text of tokens after a prompt, as far as no further token can change it."""

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._tokens = prompt.tolist()
        self._begin = self._sent = len(tokenizer.decode(prompt))
        self.stopped = False
        """Whether a stop text came; then nothing follows."""

    def add(self, tokens: np.ndarray) -> str:
        """The text that became certain by these tokens."""
        self._tokens += tokens.tolist()
        return self._send(last=False)

    def end(self) -> str:
        """The rest, when no token follows."""
        return self._send(last=True)

    def _send(self, last: bool) -> str:
        if self.stopped:
            return ""
        # All tokens are decoded again, since what one stands for may depend on those before it.
        text = self._tokenizer.decode(self._tokens)
        found = [at for stop in self._stops if (at := text.find(stop, self._begin)) >= 0]
        if found:
            self.stopped, end = True, min(found)
        else:
            end = len(text) if last else len(text.rstrip(_UNFINISHED))
            end -= 0 if last else max((_begun(text[:end], stop) for stop in self._stops), default=0)
        begin, self._sent = self._sent, max(self._sent, end)
        return text[begin:end]


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the first ones of a stop text."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
