"""Whole models: the decoder, its initialisation, its files."""

from minids3.model.block import Block
from minids3.model.files import ModelFileError, load_model, load_shipped, save_model
from minids3.model.mtp import MTPModule
from minids3.model.transformer import Transformer

__all__ = [
    "Block",
    "MTPModule",
    "ModelFileError",
    "Transformer",
    "load_model",
    "load_shipped",
    "save_model",
]
