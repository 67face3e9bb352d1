"""Whole models: the decoder, its initialisation, its files."""

from minids3.model.files import ModelFileError, load_model, load_shipped, save_model
from minids3.model.transformer import Block, Transformer

__all__ = [
    "Block",
    "ModelFileError",
    "Transformer",
    "load_model",
    "load_shipped",
    "save_model",
]
