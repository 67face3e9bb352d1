"""What all commands share: errors in one line on stderr, and the exit status that goes with them.

0: done. 1: what was asked for was looked into, and something is wrong with it. 2: it cannot be done
as asked. 130: interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["Parser", "demand", "fail", "positive", "run"]

EXPECTED = (OSError, ValueError, LookupError, RuntimeError, ImportError)


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong argument with one line, and status 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit with status 2."""
        self.exit(2, f"error: {one_line(message)} ({self.prog} --help says more)\n")


def positive(text: str) -> int:
    """The type of an argument that counts something: a whole number from 1."""
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def one_line(message: object) -> str:
    """A message without line breaks and without bytes that a terminal would obey."""
    words = " ".join(str(message).split())
    return "".join(c if c.isprintable() else "?" for c in words)


def fail(error: object) -> int:
    """Print an error in one line on stderr; returns the exit status 2."""
    text = one_line(error)
    if isinstance(error, KeyError):
        text = one_line(error.args[0] if error.args else "")
    print(f"error: {text or type(error).__name__}", file=sys.stderr)
    return 2


def demand(package: str, what: str, install: str = "") -> None:
    """Refuse a command whose package is not installed.

    Args:
        package: its name.
        what: needs it.
        install: what pip is given, if not the package's name.

    Raises:
        ImportError: with what to do.
    """
    if importlib.util.find_spec(package) is None:
        advice = f"pip install {install or package}"
        raise ImportError(f"{what} needs {package}, which is not installed: {advice}")


def run(action: Callable[[], int]) -> int:
    """Do a command's work; what may go wrong on a user's machine becomes one line and status 2."""
    try:
        status = action()
        sys.stdout.flush()  # a full disk is noticed here, not while Python shuts down
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever was reading, such as 'head', has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except EXPECTED as error:
        return fail(error)
    return status
