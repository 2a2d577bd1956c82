"""The thin API: parse, authorise, one call, answer."""

from __future__ import annotations
