"""The two paths without TLS and without a cluster: what goes in, what comes out, and that a fault of ours stops nobody."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from kvpool_operator.injection.outcome import Outcome
from kvpool_operator.webhook import server as server_module
from kvpool_operator.webhook.server import Timings, application

BODY = {"metadata": {"name": "p"}, "spec": {"a": 1}}


def review(**request: Any) -> dict[str, Any]:
    return {"request": {"uid": "u1", "object": BODY, **request}}


async def ask(outcome: Outcome | Exception | None, document: Any) -> tuple[int, Any]:
    async def decide(_: Mapping[str, Any]) -> Outcome | None:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    timings = Timings()
    async with TestClient(TestServer(application({"/pods": decide}, timings))) as client:
        answer = await client.post("/pods", data=json.dumps(document))
        text = await answer.text()
        assert timings.count == (answer.status == 200)
        return answer.status, json.loads(text)["response"] if answer.status == 200 else text


async def test_a_change_is_a_patch() -> None:
    changed = {**BODY, "spec": {"a": 2, "b~/c": [1]}}
    _, answer = await ask(Outcome(changed, warnings=("w" * 300,)), review())
    assert (answer["uid"], answer["allowed"], answer["patchType"]) == ("u1", True, "JSONPatch")
    assert json.loads(base64.b64decode(answer["patch"])) == [
        {"op": "replace", "path": "/spec/a", "value": 2},
        {"op": "add", "path": "/spec/b~0~1c", "value": [1]},
    ]
    assert answer["warnings"] == ["w" * 240]


async def test_no_change_is_no_patch() -> None:
    for outcome in (None, Outcome(dict(BODY))):
        assert (await ask(outcome, review()))[1] == {"uid": "u1", "allowed": True}


async def test_a_fault_of_ours_lets_the_object_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert (await ask(RuntimeError("ours"), review(name="p")))[1] == {"uid": "u1", "allowed": True}
    assert "passes as it is" in caplog.text


@pytest.mark.parametrize("document", [{}, [], {"request": {}}, {"request": {"uid": "u", "object": None}}, "x"])
async def test_what_is_no_review_is_refused(document: Any) -> None:
    status, text = await ask(None, document)
    assert status == 400
    assert "AdmissionReview" in text


@pytest.mark.parametrize("text", ["[" * 5000, '{"request":' * 5000, "{", "\xff"])
async def test_what_cannot_be_parsed_is_refused(text: str, caplog: pytest.LogCaptureFixture) -> None:
    status, _ = await post(text.encode("latin-1"))
    assert status == 400
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(("size", "status"), [(6 << 20, 400), (8 << 20, 413)])
async def test_no_more_is_read_than_the_api_server_sends(size: int, status: int) -> None:
    assert (await post(b"[" + b" " * size + b"]"))[0] == status


async def test_reviews_are_parsed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody in the cluster may send one, and all else waits on the loop."""
    threads = set[int]()

    def parse(_: bytes) -> Any:
        threads.add(threading.get_ident())
        return review()

    monkeypatch.setattr(server_module, "_parsed", parse)
    assert (await post(b""))[0] == 200
    assert threads
    assert threading.get_ident() not in threads


async def post(body: bytes) -> tuple[int, str]:
    """Send a body to a path that lets everything pass. Return the answer's status and text."""

    async def decide(_: Mapping[str, Any]) -> None:
        return None

    async with TestClient(TestServer(application({"/pods": decide}, Timings()))) as client:
        answer = await client.post("/pods", data=io.BytesIO(body))
        return answer.status, await answer.text()


def test_quantiles() -> None:
    timings = Timings()
    assert timings.quantile(0.99) == 0
    for number in range(1, 101):
        timings.add(float(number))
    assert (timings.quantile(0.5), timings.quantile(0.99), timings.quantile(1.0)) == (50, 99, 100)


async def test_a_wait_is_part_of_the_time() -> None:
    async def decide(_: Mapping[str, Any]) -> None:
        await asyncio.sleep(0.02)

    timings = Timings()
    async with TestClient(TestServer(application({"/pods": decide}, timings))) as client:
        await client.post("/pods", data=json.dumps(review()))
    assert timings.quantile(0.5) >= 0.02
