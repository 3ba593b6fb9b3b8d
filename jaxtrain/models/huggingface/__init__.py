"""Weights in the format of Hugging Face's `transformers`, a folder of `config.json` and safetensors: in and out."""

from jaxtrain.models.huggingface.reading import from_hugging_face, hugging_face_model
from jaxtrain.models.huggingface.writing import to_hugging_face

__all__ = ["from_hugging_face", "hugging_face_model", "to_hugging_face"]
