"""Wire dialects, one file each: what a request asks, how an answer is written, what an answer's usage was."""

from __future__ import annotations

from hyperagent_tasks.gateway.dialects.anthropic_messages import Messages
from hyperagent_tasks.gateway.dialects.base import Dialect
from hyperagent_tasks.gateway.dialects.gemini import Gemini
from hyperagent_tasks.gateway.dialects.openai_chat import Chat
from hyperagent_tasks.gateway.dialects.openai_responses import Responses

ALL: tuple[Dialect, ...] = (Chat(), Responses(), Messages(), Gemini())
