"""Requests that are made of token ids, what lies between their tokens, and an engine's own counters. Standard library only."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([-+\w.]+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
TIMEOUT_S = 180.0


@dataclasses.dataclass(frozen=True)
class Reply:
    """One completion: when its tokens came, in seconds since the request was sent."""

    arrivals_s: list[float]
    text: str
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that some cache held."""

    @property
    def ttft_s(self) -> float:
        """To the first token."""
        return self.arrivals_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Between one token and the next."""
        return [later - earlier for earlier, later in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


def complete(
    url: str, model: str, prompt: Sequence[int], max_tokens: int, on_token: Callable[[], object] = lambda: None
) -> Reply:
    """Greedy, streamed, of exactly ``max_tokens`` tokens.

    Raises:
        RuntimeError: an error, or no token at all.
        OSError: no answer.
    """
    body = {
        "model": model, "prompt": list(prompt), "max_tokens": max_tokens, "min_tokens": max_tokens, "ignore_eos": True,
        "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    arrivals: list[float] = []
    text: list[str] = []
    usage: dict[str, Any] = {}
    connection = _connect(url)
    began = time.monotonic()
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        _check(url, response)
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            now = time.monotonic() - began
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{url}: {event['error']}")
            if event["choices"]:
                arrivals.append(now)
                text += [choice["text"] for choice in event["choices"]]
                on_token()
            usage = event.get("usage") or usage
    finally:
        connection.close()
    if not arrivals:
        raise RuntimeError(f"{url}: no token came")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Reply(arrivals, "".join(text), usage["prompt_tokens"], cached)


def tokens_of(url: str, model: str, text: str) -> list[int]:
    """The engine's tokenizer, without special tokens."""
    connection = _connect(url)
    try:
        body = json.dumps({"model": model, "prompt": text, "add_special_tokens": False})
        connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        _check(url, response)
        return [int(token) for token in json.loads(response.read())["tokens"]]
    finally:
        connection.close()


Metrics = dict[tuple[str, str], float]
"""By name and the value of the label that tells the pool's tiers and events apart ("" without one)."""


def metrics_of(url: str) -> Metrics:
    """The engine's counters and gauges, summed over labels that do not matter here."""
    return parse_metrics(get(url, "/metrics"))


def get(url: str, path: str) -> str:
    """A page.

    Raises:
        RuntimeError: refused.
        OSError: no answer.
    """
    connection = _connect(url)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        _check(url, response)
        return response.read().decode()
    finally:
        connection.close()


def parse_metrics(text: str) -> Metrics:
    """Prometheus' text format."""
    found: Metrics = {}
    for line in text.splitlines():
        if (sample := _SAMPLE.match(line)) is not None:
            labels = dict(_LABEL.findall(sample[2] or ""))
            key = (str(sample[1]), str(labels.get("tier", labels.get("event", ""))))
            found[key] = found.get(key, 0.0) + float(sample[3])
    return found


def _connect(url: str) -> http.client.HTTPConnection:
    where = urlsplit(url)
    return http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=TIMEOUT_S)


def _check(url: str, response: http.client.HTTPResponse) -> None:
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{url}: HTTP {response.status}: {response.read(500).decode(errors='replace')}")
