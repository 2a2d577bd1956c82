"""Wire dialects, one file each: what a request asks, how an answer is written, what an answer's usage was."""

from __future__ import annotations
