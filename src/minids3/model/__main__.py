"""``python -m minids3.model export MODEL --to hf|gguf``: take a model along to other programs."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch

from minids3.command import Parser, demand, run
from minids3.data import Tokenizer, load_tokenizer
from minids3.data.bpe import SPECIALS
from minids3.model.files import find_model, replace_files
from minids3.model.gguf import save_gguf
from minids3.model.hf import save_hf
from minids3.model.transformer import Transformer

__all__ = ["export", "main"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        demand("gguf", "exporting to GGUF", "'minids3[export]'")
        if args.dtype == "bf16":
            raise ValueError("--dtype bf16 is for hf: a GGUF file is written in fp32 or fp16")
    model, folder = find_model(args.model)
    out = args.out or Path(folder.name + ("-hf" if args.to == "hf" else ".gguf"))
    print(f"written to {export(model, load_tokenizer(), out, args.to, DTYPES[args.dtype])}")
    return 0


def export(
    model: Transformer,
    tokenizer: Tokenizer | None,
    out: Path,
    to: str,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write ``model`` to ``out``, as a folder for transformers or as a GGUF file; returns ``out``.

    Args:
        model: what to write.
        tokenizer: goes along if its vocabulary is the model's.
        out: folder (``"hf"``) or file (``"gguf"``).
        to: which.
        dtype: of the matrices.

    Raises:
        ConfigError: the format has no way to say something that this model needs.
        OSError: it cannot be written.
    """
    if tokenizer is not None and tokenizer.vocab_size != model.config.vocab_size:
        tokenizer = None
    if to == "gguf":
        return save_gguf(model, out, tokenizer, dtype)
    save_hf(model, out, dtype)
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
