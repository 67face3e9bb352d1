"""Command line: `python -m minids3.data build | verify | show DOMAIN`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minids3.data import corpora
from minids3.data.build import build, verify
from minids3.data.files import DataError, data_dir


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m minids3.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="rebuild the shipped data, byte for byte")
    command.add_argument("--out", type=Path, help="folder (default: where the data lies)")
    command = commands.add_parser("verify", help="compare the data with its checksums")
    command.add_argument("--dir", type=Path, help="folder (default: where the data lies)")
    command = commands.add_parser("show", help="print documents with their surprisal")
    command.add_argument("domain", choices=corpora.DOMAINS)
    command.add_argument("--n", type=int, default=3)
    command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "build":
            folder = arguments.out or data_dir()
            for name in build(folder):
                print(f"{name:24s} {(folder / name).stat().st_size:>10,} bytes")
        elif arguments.command == "verify":
            for name in verify(arguments.dir or data_dir()):
                print(f"{name:24s} ok")
        else:
            print(f"# {arguments.domain}: {corpora.entropy(arguments.domain):.2f} bits a document")
            for document in corpora.generate(arguments.domain, arguments.n, arguments.seed):
                print(f"\n# {document.bits:.2f} bits\n{document.text.rstrip()}")
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
