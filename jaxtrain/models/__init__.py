"""Architectures: frozen configs that build Flax NNX modules whose array dims have names."""

from jaxtrain.models.base import Model
from jaxtrain.models.batch_norm import BatchNorm
from jaxtrain.models.bert import Bert
from jaxtrain.models.experts import Experts
from jaxtrain.models.layers import Precision
from jaxtrain.models.lora import LoRA
from jaxtrain.models.naive_bayes import NaiveBayes
from jaxtrain.models.ngrams import NGrams
from jaxtrain.models.recurrent import Recurrent
from jaxtrain.models.resnet import ResNet
from jaxtrain.models.rope import Rope
from jaxtrain.models.transformer import Blocks, Transformer
from jaxtrain.models.vit import ViT

__all__ = [
    "BatchNorm",
    "Bert",
    "Blocks",
    "Experts",
    "LoRA",
    "Model",
    "NGrams",
    "NaiveBayes",
    "Precision",
    "Recurrent",
    "ResNet",
    "Rope",
    "Transformer",
    "ViT",
]
