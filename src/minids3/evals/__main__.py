"""``python -m minids3.evals MODEL``: how much of what a model writes is exactly right."""

from __future__ import annotations

import sys
from functools import partial

from minids3.command import Parser, positive, run
from minids3.data import load_tokenizer
from minids3.data.corpora import ALL_DOMAINS
from minids3.data.fresh import stream_validation
from minids3.evals.bits import loss_above_floor
from minids3.evals.documents import grammatical_share, sample_documents, sums_right
from minids3.infer.acceptance import acceptance_by_domain
from minids3.model import find_model

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and measure; returns the exit status."""
    return run(partial(_measure, sys.argv[1:] if argv is None else argv))


def _measure(argv: list[str]) -> int:
    parser = Parser(prog="python -m minids3.evals", description=__doc__)
    parser.add_argument("model", help="a shipped model's name, or the folder of a model")
    parser.add_argument("--n", type=positive, default=256, help="documents to write, sums to ask")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the documents")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model, _ = find_model(args.model)
    tokenizer = load_tokenizer()
    texts = []
    for start in range(0, args.n, 32):
        count = min(32, args.n - start)
        seed = args.seed * 1_000_003 + start
        texts += sample_documents(model, tokenizer, count, args.temperature, seed)
    held_out, _ = stream_validation(tokenizer)
    accepted = acceptance_by_domain(model, held_out, domains=ALL_DOMAINS) if len(model.mtp) else {}
    above = loss_above_floor(model, held_out)
    print(f"{'domain':12} {'grammatical':>16} {'second token':>14} {'above the floor':>17}")
    for domain, (right, of) in grammatical_share(texts).items():
        share = f"{right / of:.0%}" if of else ""
        second = f"{accepted[domain]:.1%}" if domain in accepted else ""
        nats = f"{above[domain]:.3f} nats"
        print(f"{domain:12} {right:4} of {of:4} {share:>5} {second:>14} {nats:>17}")
    right, of = sums_right(model, tokenizer, args.n, args.seed)
    print(f"sums right   {right:4} of {of:4} {right / of:>5.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
