"""Whole models: the decoder, its initialisation, its files."""

from minids3.model.block import Block
from minids3.model.count import activated_parameters, training_flops_per_token
from minids3.model.files import ModelFileError, find_model, load_model, load_shipped, save_model
from minids3.model.mtp import MTPModule
from minids3.model.transformer import Transformer

__all__ = [
    "Block",
    "MTPModule",
    "ModelFileError",
    "Transformer",
    "activated_parameters",
    "find_model",
    "load_model",
    "load_shipped",
    "save_model",
    "training_flops_per_token",
]
