"""Text from a language model: sampling, the loop over tokens with a key-value cache, and the streams of text."""

from jaxtrain.generation.decoder import Decoder, generate
from jaxtrain.generation.functions import decode_function, prefill_function
from jaxtrain.generation.sampling import Sampling

__all__ = ["Decoder", "Sampling", "decode_function", "generate", "prefill_function"]
