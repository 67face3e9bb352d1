"""``python -m minids3.model export MODEL --to hf|gguf``: take a model along to other programs."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minids3.command import Parser, demand, run
from minids3.data import Tokenizer, load_tokenizer
from minids3.data.bpe import SPECIALS
from minids3.model.files import find_model, replace_files
from minids3.model.gguf import save_gguf
from minids3.model.hf import save_hf
from minids3.model.transformer import Transformer

__all__ = ["export", "main"]

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and export; returns the exit status."""
    return run(partial(_main, sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    parser = Parser(prog="python -m minids3.model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add = commands.add_parser("export", help="write a model for other programs").add_argument
    add("model", help="a shipped model's name, or the folder of a model")
    add("--to", choices=("hf", "gguf"), required=True, help="a folder for transformers, or a file")
    add("--out", type=Path, help="where to (default: MODEL-hf or MODEL.gguf, here)")
    add("--dtype", choices=DTYPES, default="fp32", help="of the matrices (default: fp32)")
    args = parser.parse_args(argv)
    if args.to == "gguf":
        if args.dtype == "fp8":
            raise ValueError("--dtype fp8 is for hf: a GGUF file is written in fp32 or fp16")
        demand("gguf", "exporting to GGUF", "'minids3[export]'")
        if args.dtype == "bf16":
            raise ValueError("--dtype bf16 is for hf: a GGUF file is written in fp32 or fp16")
    model, folder = find_model(args.model)
    out = args.out or Path(folder.name + ("-hf" if args.to == "hf" else ".gguf"))
    notes = folder / "about.json"
    about = json.loads(notes.read_text("utf-8")) if notes.exists() else None
    dtype = DTYPES[args.dtype]
    print(f"written to {export(model, load_tokenizer(), out, args.to, dtype, about)}")
    return 0


def export(
    model: Transformer,
    tokenizer: Tokenizer | None,
    out: Path,
    to: str,
    dtype: torch.dtype = torch.float32,
    about: dict[str, Any] | None = None,
) -> Path:
    """Write ``model`` to ``out``, as a folder for transformers or as a GGUF file; returns ``out``.

    Args:
        model: what to write.
        tokenizer: goes along if its vocabulary is the model's.
        out: folder (``"hf"``) or file (``"gguf"``).
        to: which.
        dtype: of the matrices. FP8 (E4M3, for a folder) with a scale per block of 128 x 128, as
            the release, whose embeddings, norms and gates are BF16.
        about: JSON notes that go into the folder.

    Raises:
        ConfigError: the format has no way to say something that this model needs.
        OSError: it cannot be written.
    """
    if tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size:
        tokenizer = None
    if to == "gguf":
        return save_gguf(model, out, tokenizer, dtype)
    fp8 = dtype is torch.float8_e4m3fn
    save_hf(model, out, torch.bfloat16 if fp8 else dtype, fp8, about=about)
    if tokenizer is not None:
        bos, eos, pad = (
            SPECIALS[i] for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        )
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.max_position_embeddings,
        }
        with replace_files(out) as stage:
            (stage / "tokenizer.json").write_text(tokenizer.backend.to_str(), "utf-8")
            text = json.dumps(settings, indent=2) + "\n"
            (stage / "tokenizer_config.json").write_text(text, "utf-8")
    return out


if __name__ == "__main__":
    sys.exit(main())
