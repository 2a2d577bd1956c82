"""What the commands of these tests take, and how they end when they are told to."""

from __future__ import annotations

import argparse
import signal
import sys


def counted(text: str) -> int:
    """A whole number of at least 1: a run of nothing would find nothing wrong."""
    return _at_least(1, text)


def several(text: str) -> int:
    """A whole number of at least 2."""
    return _at_least(2, text)


def above(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 0")
    return value


def ends_in_order() -> None:
    """SIGTERM ends this process as Ctrl-C does: what it started is ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return value
