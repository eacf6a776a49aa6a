"""A streaming client of an OpenAI-compatible server that measures the time to the first token. Standard library only."""

from __future__ import annotations

import dataclasses
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit


@dataclasses.dataclass(frozen=True)
class Answer:
    """One chat completion."""

    ttft_s: float
    """From sending the request to the first token."""
    total_s: float
    text: str
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that some cache held."""


def ask(url: str, model: str, prompt: str, *, max_tokens: int = 24, timeout_s: float = 180.0) -> Answer:
    """Greedy, streamed.

    Raises:
        RuntimeError: the server answered with an error.
        OSError: it did not answer.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.monotonic()
    first: float | None = None
    text: list[str] = []
    usage: dict[str, Any] = {}
    connection = _connect(url, timeout_s)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{url}: HTTP {response.status}: {response.read(500).decode(errors='replace')}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{url}: {event['error']}")
            for choice in event["choices"]:
                if part := choice["delta"].get("content"):
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
        response.read()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{url}{path}: HTTP {response.status}")
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


def _connect(url: str, timeout_s: float) -> http.client.HTTPConnection:
    where = urlsplit(url)
    assert where.hostname is not None
    return http.client.HTTPConnection(where.hostname, where.port or 80, timeout=timeout_s)
