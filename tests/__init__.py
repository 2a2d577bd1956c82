"""Tests, harnesses and benchmarks of HyperAgent."""

from __future__ import annotations
