"""Running a model: cache, sampling, generation."""

from minids3.infer.cache import KVCache, LatentCache, make_cache
from minids3.infer.generate import generate, generate_ids, stream, stream_to_cell
from minids3.infer.sample import next_token_probs, sample

__all__ = [
    "KVCache",
    "LatentCache",
    "generate",
    "generate_ids",
    "make_cache",
    "next_token_probs",
    "sample",
    "stream",
    "stream_to_cell",
]
