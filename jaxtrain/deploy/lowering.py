"""A predictor as StableHLO. Not here: running it, which needs no code of training."""

import jax
from jax import export

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.predictor import Predictor
from jaxtrain.tasks.checks import TRACED, traced_error

PLATFORMS = ("cpu", "cuda", "tpu")


def lowered(predictor: Predictor) -> export.Exported:
    """The predictor's function for any number of rows and for all platforms; only the shapes of its weights matter.

    Raises ConfigError, with the reason, where it cannot be.
    """
    (rows,) = export.symbolic_shape("batch")
    tensors = {each.name: jax.ShapeDtypeStruct((rows, *each.shape), each.dtype) for each in predictor.tensors}
    weights = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in predictor.weights.items()}
    who = f"{type(predictor.task).__name__}.predict cannot be exported"
    try:
        return export.export(jax.jit(predictor.function), platforms=PLATFORMS)(weights, tensors)
    except TRACED as error:
        raise traced_error(error, who) from error
    except (TypeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{who} for any number of rows and for {', '.join(PLATFORMS)}: {why[0]}") from error
