"""Command line: ``python -m minids3.data build | verify | show DOMAIN``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minids3.command import Parser, fail, positive, run
from minids3.data import corpora
from minids3.data.build import build, verify
from minids3.data.files import DataError, data_dir, own_data_dir

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 1 if the data differ from their checksums, 2 if something cannot be done.
    """
    parser = Parser(prog="python -m minids3.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="rebuild the shipped data, byte for byte")
    command.add_argument("--out", type=Path, help="folder (default: the repository's data)")
    command = commands.add_parser("verify", help="compare the data with its checksums")
    command.add_argument("--dir", type=Path, help="folder (default: where the data lies)")
    command = commands.add_parser("show", help="print documents with their surprisal")
    command.add_argument("domain", choices=corpora.ALL_DOMAINS)
    command.add_argument("--n", type=positive, default=3, help="how many (default: 3)")
    command.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    return run(lambda: _COMMANDS[arguments.command](arguments))


def _build(arguments: argparse.Namespace) -> int:
    folder = arguments.out or own_data_dir("--out FOLDER")
    for name in build(folder):
        print(f"{name:24s} {(folder / name).stat().st_size:>10,} bytes")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    folder = arguments.dir or data_dir()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    try:
        names = verify(folder)
    except DataError as error:
        fail(error)
        return 1
    for name in names:
        print(f"{name:24s} ok")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    domain = arguments.domain
    print(f"# {domain}: {corpora.entropy(domain):.2f} bits a document")
    for document in corpora.generate(domain, arguments.n, arguments.seed):
        print(f"\n# {document.bits:.2f} bits\n{document.text.rstrip()}")
    return 0


_COMMANDS = {"build": _build, "verify": _verify, "show": _show}

if __name__ == "__main__":
    sys.exit(main())
