"""Adapters of one name and path with other content share nothing, in keys and through engines on
one Redis."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.kv_offload.base import OffloadKey, ReqContext

from connector.tests.engine import models
from connector.tests.engine.harness import TINY, empty, remote, running, tokens
from connector.tests.engine.test_features import adapter, ask, ids
from kvpool_connector.vllm import adapter_loads
from kvpool_connector.vllm import adapters as adapters_module
from kvpool_connector.vllm.adapters import AdapterCheck, Adapters, salted
from kvpool_connector.vllm.lookup import PoolLookup
from testkit.patience import PATIENCE_S
from testkit.servers import KeyValueServer, wait_until

pytestmark = pytest.mark.timeout(300)

PROMPT = tokens(1, 330, models.VOCABULARY)
KEY = bytes(range(32)) + b"\0\0\0\1"


def checked(adapters: Adapters, folder: Path) -> AdapterCheck:
    """Return an answered check."""
    check = adapters.check(str(folder))
    wait_until("the adapter's files were read", lambda: check.done)
    return check


def test_keys_follow_the_content(tmp_path: Path) -> None:
    """Two engines with one path; the same content is the same adapter, wherever and whenever it was
    written."""
    first = adapter(tmp_path / "x", 1)
    keys = [checked(Adapters(), Path(first)).keys([KEY])]
    shutil.copytree(first, tmp_path / "copy")
    keys.append(checked(Adapters(), tmp_path / "copy").keys([KEY]))
    shutil.rmtree(first)
    adapter(tmp_path / "x", 2)
    keys.append(checked(Adapters(), Path(first)).keys([KEY]))
    assert keys[0] == keys[1] != keys[2]
    assert all(len(key) == len(KEY) and key[-4:] == KEY[-4:] and key != KEY for (key,) in keys)


@pytest.mark.parametrize("length", [16, 32])
def test_salted_keys(length: int) -> None:
    """Of the algorithms that vLLM has: one to one, and another for each adapter."""
    plain = [number.to_bytes(length, "big") + b"\0\0\0\2" for number in range(100)]
    made = {salted(key, salt) for key in plain for salt in (bytes(32), b"\1" * 32)}
    assert len(made) == 200
    assert not made & set(plain)


def test_a_change_under_a_running_engine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows then which files vLLM computes with: such requests share nothing, and the log
    says it once."""
    adapters = Adapters()
    folder = Path(adapter(tmp_path / "x", 1))
    before = checked(adapters, folder)
    assert checked(adapters, folder).keys([KEY]) == before.keys([KEY])
    shutil.rmtree(folder)
    adapter(folder, 2)
    for _ in range(2):
        assert checked(adapters, folder).keys([KEY]) == []
    assert len(before.keys([KEY])) == 1, "a request that runs keeps the keys that it has"
    (said,) = [record.getMessage() for record in caplog.records]
    assert "changed while this engine was running" in said
    adapters.close()


def test_a_change_between_loading_and_the_first_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What vLLM has loaded is not what is in the files now, so nothing may be shared."""
    adapters = Adapters()
    folder = Path(adapter(tmp_path / "x", 1))
    same = Path(adapter(tmp_path / "y", 1))
    for path in (folder, same, tmp_path / "nothing"):
        adapters.loading(str(path))
    shutil.rmtree(folder)
    adapter(folder, 2)
    adapters.loading(str(folder))
    assert checked(adapters, folder).keys([KEY]) == []
    assert len(checked(adapters, same).keys([KEY])) == 1
    assert "changed while this engine was running" in caplog.text
    adapters.close()


def test_files_that_come_while_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the hub: they are noted once vLLM has them, and a change before the first request is seen.

    The core is a stand-in: a repository of the hub cannot be had in a test.
    """

    class Scheduler:
        def get_kv_connector(self) -> str:
            return "ours"

    class Core:
        scheduler = Scheduler()

        def add_lora(self, lora_request: LoRARequest) -> bool:
            adapter(Path(lora_request.lora_path), 1)
            return True

    monkeypatch.setattr(adapter_loads, "EngineCore", Core)
    adapters = Adapters(Path)
    adapter_loads.watch(lambda connector, path: adapters.loading(path))
    assert Core().add_lora(LoRARequest("x", 1, str(tmp_path / "x")))
    shutil.rmtree(tmp_path / "x")
    adapter(tmp_path / "x", 2)
    assert checked(adapters, tmp_path / "x").keys([KEY]) == []
    adapters.close()


def test_files_that_were_looked_at_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first request was computed meanwhile, perhaps with other files: no later one shares either."""
    monkeypatch.setattr(adapters_module, "PATIENCE_S", 0.0)
    adapters = Adapters()
    folder = Path(adapter(tmp_path / "x", 1))
    checked(adapters, folder)
    monkeypatch.setattr(adapters_module, "PATIENCE_S", PATIENCE_S)
    assert checked(adapters, folder).keys([KEY]) == []
    (said,) = [record.getMessage() for record in caplog.records]
    assert "waited for too long" in said
    adapters.close()


def test_files_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of an adapter that vLLM cannot load either; once it is there, it is read."""
    adapters = Adapters(Path)
    assert checked(adapters, tmp_path / "x").keys([KEY]) == []
    adapter(tmp_path / "x", 1)
    assert len(checked(adapters, tmp_path / "x").keys([KEY])) == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert "cannot be read" in said
    adapters.close()


class NoAnswer(Adapters):
    """A thread that reads from a file system that hangs. Such a file system cannot be had here."""

    def _answer(self) -> None:
        """Answer nothing."""


def test_a_request_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lookups are asked again until its deadline, then it is a miss, and an answer that comes
    later is not used."""
    now = 100.0
    monkeypatch.setattr("kvpool_connector.vllm.adapters.time.monotonic", lambda: now)
    adapters = NoAnswer()
    context = ReqContext("r")
    check = adapters.check("x")
    context.set_state(check)
    look_up = PoolLookup(_NoPool(), adapters).lookup  # type: ignore[arg-type]
    assert look_up(OffloadKey(KEY), context).name == "RETRY"
    now = 100.6
    assert look_up(OffloadKey(KEY), context).name == "MISS"
    check.digest = bytes(32)
    check.done = True
    assert look_up(OffloadKey(KEY), context).name == "MISS"
    assert check.keys([KEY]) == []


class _NoPool:
    """A pool that is never asked: every question ends at the adapter's check."""

    lookups = index = property(lambda self: self)
    find = good = promised = lookup = None


def test_an_adapter_trained_again_under_its_name(
    store: KeyValueServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another engine on the same Redis, name and path: no hit, and the text of the new content. The
    same content hits."""
    monkeypatch.setattr(adapters_module, "PATIENCE_S", PATIENCE_S)
    empty(store)
    llama = models.save(models.llama, tmp_path / "llama")
    kvpool: dict[str, Any] = {"tiers": {"cpu": {"size": "64Mi"}}, "chunk_tokens": 32, "admission": "always"}
    options: dict[str, Any] = TINY | {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}
    lora = LoRARequest("x", 1, str(tmp_path / "x"))

    def answer(config: dict[str, Any]) -> tuple[list[int], int]:
        with running(llama, config, **options) as engine:
            output = ask(engine, PROMPT, lora=lora)
            engine.settle()
            engine.assert_nothing_is_left()
            return ids(output), output.num_cached_tokens or 0

    shared = kvpool | {"remote": remote(store, tmp_path)}
    adapter(tmp_path / "x", 1)
    first = answer(shared)
    assert first[1] == 0
    assert answer(shared) == (first[0], 320)
    shutil.rmtree(tmp_path / "x")
    adapter(tmp_path / "x", 2)
    alone = answer(kvpool)
    assert alone[0] != first[0]
    assert answer(shared) == alone


def test_an_adapter_replaced_between_loading_and_its_first_request(
    store: KeyValueServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine computes with the files that it has loaded, and another engine, which loads the
    new ones, finds nothing of it. One whose files stay shares as ever."""
    monkeypatch.setattr(adapters_module, "PATIENCE_S", PATIENCE_S)
    empty(store)
    llama = models.save(models.llama, tmp_path / "llama")
    kvpool: dict[str, Any] = {"tiers": {"cpu": {"size": "64Mi"}}, "chunk_tokens": 32, "admission": "always"}
    shared = kvpool | {"remote": remote(store, tmp_path)}
    options: dict[str, Any] = TINY | {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}
    lora = LoRARequest("x", 1, str(tmp_path / "x"))

    def answer(*, replaced: bool) -> tuple[list[int], int]:
        with running(llama, shared, **options) as engine:
            engine.llm.llm_engine.add_lora(lora)
            if replaced:
                shutil.rmtree(tmp_path / "x")
                adapter(tmp_path / "x", 2)
            output = ask(engine, PROMPT, lora=lora)
            engine.settle()
            return ids(output), output.num_cached_tokens or 0

    adapter(tmp_path / "x", 1)
    old = answer(replaced=True)
    new = answer(replaced=False)
    assert new[1] == 0
    assert new[0] != old[0]
    assert answer(replaced=False) == (new[0], 320)
