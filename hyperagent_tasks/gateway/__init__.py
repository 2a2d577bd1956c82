"""The gateway: the one process between every agent CLI of a host and every model provider. It alone holds the keys."""

from __future__ import annotations
