"""What a scripted model says to other people's coding agents: a text or the use of a tool, in each protocol that they speak."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from tests.modelserver import Behaviour, Handler, completion, sends

TOKENS_IN, TOKENS_OUT = 1000, 50
NUMBERS = itertools.count()
"""Two uses of a tool with one number are one, to some agents."""
BESIDE = {"/count_tokens": sends({"input_tokens": TOKENS_IN}), ":countTokens": sends({"totalTokens": TOKENS_IN})}
"""What agents ask beside their conversation."""


def _events(events: Iterable[Mapping[str, Any]], *, named: bool = True) -> Behaviour:
    """Server-sent events, all at once."""

    def behaviour(handler: Handler) -> None:
        lines = [(f"event: {one['type']}\n" if named else "") + f"data: {json.dumps(one)}\n\n" for one in events]
        handler.send("".join(lines).encode(), kind="text/event-stream")

    return behaviour


# -- OpenAI's chat completions ------------------------------------------------------------------------


def chat_use(tool: str, arguments: Mapping[str, Any]) -> Behaviour:
    """mini-swe-agent."""
    call = {"id": f"call_{next(NUMBERS)}", "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}
    return sends(completion("I use a tool.", finish="tool_calls", tool_calls=[call]))


# -- OpenAI's responses: Codex CLI --------------------------------------------------------------------


def response_says(text: str) -> Behaviour:
    return _response({"type": "message", "id": f"msg_{next(NUMBERS)}", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": text, "annotations": []}]})


def response_uses(tool: str, arguments: Mapping[str, Any]) -> Behaviour:
    number = next(NUMBERS)
    return _response({"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}", "name": tool, "arguments": json.dumps(arguments), "status": "completed"})


def _response(item: Mapping[str, Any]) -> Behaviour:
    usage = {
        "input_tokens": TOKENS_IN, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": TOKENS_OUT,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": TOKENS_IN + TOKENS_OUT,
    }  # fmt: skip
    made = {"id": "resp_1", "object": "response", "created_at": 1795000000, "model": "scripted"}
    return _events(
        [
            {"type": "response.created", "response": {**made, "status": "in_progress", "output": []}},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": {**made, "status": "completed", "output": [item], "usage": usage}},
        ]
    )


# -- Anthropic's messages: Claude Code ----------------------------------------------------------------


def message_says(text: str) -> Behaviour:
    return _message({"type": "text", "text": ""}, {"type": "text_delta", "text": text}, "end_turn")


def message_uses(tool: str, arguments: Mapping[str, Any]) -> Behaviour:
    block = {"type": "tool_use", "id": f"toolu_{next(NUMBERS)}", "name": tool, "input": {}}
    return _message(block, {"type": "input_json_delta", "partial_json": json.dumps(arguments)}, "tool_use")


def _message(block: Mapping[str, Any], delta: Mapping[str, Any], stop: str) -> Behaviour:
    usage = {"input_tokens": TOKENS_IN, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}
    message: dict[str, Any] = {"id": f"msg_{next(NUMBERS)}", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    return _events(
        [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": TOKENS_OUT}},
            {"type": "message_stop"},
        ]
    )


# -- Google's generateContent: Gemini CLI -------------------------------------------------------------


def content_says(text: str) -> Behaviour:
    return _content({"text": text})


def content_uses(tool: str, arguments: Mapping[str, Any]) -> Behaviour:
    return _content({"functionCall": {"name": tool, "args": dict(arguments)}})


def _content(part: Mapping[str, Any]) -> Behaviour:
    usage = {"promptTokenCount": TOKENS_IN, "candidatesTokenCount": TOKENS_OUT, "totalTokenCount": TOKENS_IN + TOKENS_OUT}
    candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
    return _events([{"candidates": [candidate], "usageMetadata": usage, "modelVersion": "scripted"}], named=False)
