"""The common room: the words of the domain, without Flask and without Docker."""

from __future__ import annotations

__version__ = "0.1.0"
