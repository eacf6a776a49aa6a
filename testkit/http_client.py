"""A streaming client of an OpenAI-compatible server that measures the time to the first token. Standard library only."""

from __future__ import annotations

import dataclasses
import http.client
import json
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

ANSWER_TOKENS = 24
"""The longest answer that is asked for where nothing else is said."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One completion."""

    ttft_s: float
    """From sending the request to the first token."""
    total_s: float
    text: str
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that some cache held."""


def ask(url: str, model: str, prompt: str, *, max_tokens: int = ANSWER_TOKENS, timeout_s: float = 180.0) -> Answer:
    """Send a user's message to the chat endpoint; greedy, streamed.

    Raises:
        RuntimeError: the server answered with an error.
        OSError: it did not answer.
    """
    body = {"messages": [{"role": "user", "content": prompt}]}

    def text_of(choice: dict[str, Any]) -> str:
        return choice["delta"].get("content") or ""

    return _streamed(url, "/v1/chat/completions", _request(model, max_tokens) | body, text_of, timeout_s)


def complete(
    url: str, model: str, tokens: Sequence[int], *, max_tokens: int = ANSWER_TOKENS, timeout_s: float = 180.0
) -> Answer:
    """Send token ids to the completion endpoint; greedy, streamed.

    Raises:
        RuntimeError: the server answered with an error.
        OSError: it did not answer.
    """

    def text_of(choice: dict[str, Any]) -> str:
        return choice["text"] or ""

    body = {"prompt": list(tokens)}
    return _streamed(url, "/v1/completions", _request(model, max_tokens) | body, text_of, timeout_s)


def chat_tokens(url: str, model: str, prompt: str) -> list[int]:
    """Return the token ids that the chat endpoint makes of a user's message.

    Raises:
        RuntimeError: the server answered with an error.
        OSError: it did not answer.
    """
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    connection = _connect(url, 30)
    try:
        connection.request("POST", "/tokenize", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        _check(url, response)
        return [int(token) for token in json.loads(response.read())["tokens"]]
    finally:
        connection.close()


def _request(model: str, max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _streamed(
    url: str, path: str, body: dict[str, Any], text_of: Callable[[dict[str, Any]], str], timeout_s: float
) -> Answer:
    """Send a request and time its tokens as they come."""
    began = time.monotonic()
    first: float | None = None
    text: list[str] = []
    usage: dict[str, Any] = {}
    connection = _connect(url, timeout_s)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        _check(url, response)
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{url}: {event['error']}")
            for choice in event["choices"]:
                if part := text_of(choice):
                    first = first or time.monotonic()
                    text.append(part)
            usage = event.get("usage") or usage
    finally:
        connection.close()
    ended = time.monotonic()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer((first or ended) - began, ended - began, "".join(text), usage.get("prompt_tokens", 0), cached)


def post(url: str, path: str, timeout_s: float = 30.0) -> None:
    """A control call.

    Raises:
        RuntimeError: refused.
    """
    connection = _connect(url, timeout_s)
    try:
        connection.request("POST", path)
        response = connection.getresponse()
        _check(f"{url}{path}", response)
        response.read()
    finally:
        connection.close()


def healthy(url: str, path: str = "/health") -> bool:
    """Whether the server serves."""
    connection = _connect(url, 2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def reset_own_cache(url: str) -> None:
    """Forget what the engine's device memory holds; tiers and store keep theirs."""
    post(url, "/reset_prefix_cache")


def reset_tiers(url: str) -> None:
    """Forget device memory and the engine's memory tier; the shared store keeps its parts."""
    post(url, "/reset_prefix_cache?reset_external=true")


def _check(where: str, response: http.client.HTTPResponse) -> None:
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{where}: HTTP {response.status}: {response.read(500).decode(errors='replace')}")


def _connect(url: str, timeout_s: float) -> http.client.HTTPConnection:
    where = urlsplit(url)
    assert where.hostname is not None
    return http.client.HTTPConnection(where.hostname, where.port or 80, timeout=timeout_s)
