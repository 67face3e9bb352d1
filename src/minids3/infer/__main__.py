"""``python -m minids3.infer chat | serve``: talk to a model here, or let any client do so."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from minids3.command import Parser, demand, positive, run
from minids3.config import ConfigError, read_json
from minids3.data import load_tokenizer
from minids3.infer.chat import chat
from minids3.infer.engine import Engine, Sampling
from minids3.model import Transformer, find_model

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = Parser(prog="python -m minids3.infer", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True, parser_class=Parser)
    talking = commands.add_parser("chat", help="a conversation in the terminal")
    serving = commands.add_parser("serve", help="OpenAI's completions and chat routes")
    for one in (talking, serving):
        add = one.add_argument
        add("model", nargs="?", default="mini_chat", help="a shipped model's name, or a folder")
        add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
        add("--drafts", type=int, default=0, help="tokens that the MTP module guesses per step")
        kind = one.add_mutually_exclusive_group()
        kind.add_argument("--plain", action="store_true", help="only continue the text")
        kind.add_argument("--template", action="store_true", help="write turns with control tokens")
    add = talking.add_argument
    add("--max-new-tokens", type=positive, default=200, help="of an answer (default: 200)")
    add("--temperature", type=float, default=0.7, help="0: the most likely token (default: 0.7)")
    add("--top-p", type=float, default=0.95)
    add("--seed", type=int, default=0)
    add = serving.add_argument
    add("--host", default="127.0.0.1", help="default: this machine only")
    add("--port", type=int, default=8000)
    add("--max-batch", type=positive, default=16, help="requests computed together")
    add("--max-waiting", type=positive, default=64, help="requests in the house")
    add("--timeout", type=positive, default=120, help="seconds a request may take")
    add("--max-bytes", type=positive, default=1 << 20, help="of a request's body")
    return found


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and talk or serve; returns the exit status."""
    return run(partial(_main, sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.command == "serve":
        demand("uvicorn", "serving", "'minids3[serve]'")
        demand("starlette", "serving", "'minids3[serve]'")
        if not 0 <= args.port < 65536:
            raise ValueError(f"--port {args.port} must lie between 0 and 65535")
    model, template = _load(args.model, args.device)
    if args.plain or args.template:
        template = args.template
    if args.command == "serve":
        return _serve(args, model, template)
    tokenizer = load_tokenizer()
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model "
            f"{model.config.vocab_size}: it was trained with another"
        )
    engine = Engine(model, max_batch=1, drafts=args.drafts)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    print(f"{args.model}: end with Ctrl-D; an empty line begins anew")
    if not template:
        print("this model was not taught to chat: it continues what you write")
    chat(engine, tokenizer, sampling, template)
    return 0


def _load(name: str, device: str) -> tuple[Transformer, bool]:
    """A model, and whether its notes say that it was taught to chat."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("there is no GPU that this PyTorch can use: leave --device out")
    model, folder = find_model(name, device)
    try:
        return model, read_json(folder / "about.json").get("chat") is True
    except ConfigError:
        return model, False


def _serve(args: argparse.Namespace, model: Transformer, template: bool) -> int:
    import uvicorn

    from minids3.infer.serve import Limits, make_app
    from minids3.infer.service import Service

    engine = Engine(model, max_batch=args.max_batch, drafts=args.drafts)
    name = Path(args.model).name
    limits = Limits(args.max_bytes, float(args.timeout))
    with Service(engine, args.max_waiting) as service:
        app = make_app(service, load_tokenizer(), name, template, limits)
        print(f"{name} at http://{args.host}:{args.port}/v1 (end with Ctrl-C)", flush=True)
        config = uvicorn.Config(app, host=args.host, port=args.port, log_level="warning")
        server = uvicorn.Server(config)
        server.run()
    return 0 if server.started else 2


if __name__ == "__main__":
    sys.exit(main())
