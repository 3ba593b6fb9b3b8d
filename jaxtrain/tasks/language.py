"""Language modelling: prediction of the next token. Shapes: B batch, L length, V vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.models.checks import kind_of
from jaxtrain.models.variables import Context, Variables
from jaxtrain.tasks.base import Batch, Loss, Task, cross_entropy
from jaxtrain.tasks.checks import outputs_of
from jaxtrain.tasks.metrics import Mean


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """Trains a causal model on rows of L + 1 tokens by cross-entropy in nats a token.

    Where a batch has `segments` i[B, L + 1], several documents are packed into a row: positions attend only to their
    own document, and the first token of a document is no target. Segment 0 is padding.
    """

    inputs: str = "tokens"

    def __post_init__(self) -> None:
        """Raises ConfigError for a model that sees the next token, and for one output a row."""
        model = getattr(self.model, "model", self.model)  # that inside of LoRA
        if getattr(model, "causal", True) is False or getattr(model, "pooled", False):
            raise ConfigError(
                f"LanguageModel.model: {type(model).__name__} has to be causal=True and pooled=False: it predicts the "
                "next token of each position, and must not see it"
            )

    def read(self, batch: Batch) -> jax.Array:
        """All tokens of a row but the last, i[B, L]. Raises ConfigError for other arrays than ints of two dims."""
        return self._tokens(batch)[:, :-1]

    def allowed(self) -> Mapping[str, Allowed]:
        """Also segments from 0 on."""
        return {**super().allowed(), "segments": Allowed(0, why="documents are numbered from 1, and 0 is padding")}

    def _tokens(self, batch: Batch) -> jax.Array:
        tokens = super().read(batch)
        if tokens.ndim != 2 or tokens.shape[1] < 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ConfigError(
                f"LanguageModel.inputs: {self.inputs!r} is {kind_of(tokens)}, but tokens are ints [B, L + 1], at least "
                "2 a row"
            )
        return tokens

    def _segments(self, batch: Batch) -> jax.Array | None:
        """The document of each token, if rows are packed."""
        segments, tokens = batch.get("segments"), batch[self.inputs]
        if segments is not None and (segments.shape != tokens.shape or jnp.issubdtype(segments.dtype, jnp.floating)):
            wanted = f"ints {list(tokens.shape)}, one for each token"
            raise ConfigError(f"LanguageModel: 'segments' is {kind_of(segments)}, but segments are {wanted}")
        return segments

    def loss(self, variables: Variables, batch: Batch, context: Context) -> Loss:
        """The cross-entropy, and `accuracy` of the likeliest token."""
        targets_BL = self._tokens(batch)[:, 1:]
        weight_BL = jnp.broadcast_to(batch["mask"][:, None], targets_BL.shape)
        more, segments = {}, self._segments(batch)
        if segments is not None:
            more = {"segments_BL": segments[:, :-1]}
            weight_BL &= (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        logits_BLV, extras = self.model.apply(variables, self.read(batch), context, **more)
        logits_BLV, numbers = outputs_of(logits_BLV, "[B, L, V]", len(batch["mask"]), self), self.model.allowed()
        if numbers is not None and logits_BLV.shape[-1] <= numbers.most < np.inf:
            raise ConfigError(
                f"LanguageModel: the model has {logits_BLV.shape[-1]} outputs, but {numbers.most + 1:g} tokens: the "
                "later ones could not be predicted"
            )
        losses_BL = cross_entropy(logits_BLV, targets_BL)
        right_BL = (logits_BLV.argmax(-1) == targets_BL).astype(jnp.float32)
        loss, metrics = Mean.of(losses_BL, weight_BL), {"accuracy": Mean.of(right_BL, weight_BL)}
        return Loss.of(loss, metrics, extras, weight_BL.sum(1))

    def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """`log_probabilities` f32[B, V] of the token that follows the last one of each row, after its document alone;
        padding is not read.
        """
        tokens_BL, segments_BL = batch[self.inputs], self._segments(batch)
        if segments_BL is None:
            logits_BV = self.model.apply(variables, tokens_BL)[0][:, -1]
        else:
            logits_BLV, _ = self.model.apply(variables, tokens_BL, segments_BL=segments_BL)
            last_B = segments_BL.shape[1] - 1 - (segments_BL[:, ::-1] > 0).argmax(1)
            logits_BV = jnp.take_along_axis(logits_BLV, last_B[:, None, None], axis=1)[:, 0]
        return {"log_probabilities": jax.nn.log_softmax(logits_BV, axis=-1)}
