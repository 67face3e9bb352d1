"""Data: corpora whose entropy is known, byte-level BPE, shards, packing, and real text.

The path of a document: `corpora` writes it and knows its surprisal, `tokenizer` turns it into
ids, `shards` stores it, `loading` checks and reads it, `packing` cuts batches.
"""

from minids3.data import corpora
from minids3.data.corpora import DOMAINS, Document
from minids3.data.files import DataError, data_dir
from minids3.data.loading import Split, entropy_floor, load_split, load_tokenizer
from minids3.data.packing import PackedBatches
from minids3.data.text import load_text, standard_library, text_split
from minids3.data.tokenizer import Tokenizer

__all__ = [
    "DOMAINS",
    "DataError",
    "Document",
    "PackedBatches",
    "Split",
    "Tokenizer",
    "corpora",
    "data_dir",
    "entropy_floor",
    "load_split",
    "load_text",
    "load_tokenizer",
    "standard_library",
    "text_split",
]
