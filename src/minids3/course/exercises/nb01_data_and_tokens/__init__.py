"""Notebook 01: byte-pair encoding, packing, and the entropy of a grammar."""

from minids3.course.exercises.nb01_data_and_tokens import (  # noqa: F401, I001 - the order read
    count_pairs,
    merge,
    encode,
    pack,
    entropy,
    per_byte,
)
