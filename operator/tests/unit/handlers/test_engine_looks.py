"""When engines in Pods of others are asked, and what becomes of their answers."""

from __future__ import annotations

from typing import Any

from kvpool_operator.handlers.engine_looks import FIRST_PAUSE_S, LONGEST_PAUSE_S, EngineLooks
from kvpool_operator.observe.consumers import Consumers
from kvpool_operator.status.observed import EngineAddress, EngineSays, EngineState

POOL = ("team", "demo")
POD = ("team", "web-0")
ACTIVE = EngineSays(EngineState.ACTIVE, "switched on by the environment")


def pod(version: int = 1, *, ready: bool = True, run: str = "a", injected: bool = True) -> dict[str, Any]:
    annotations = {"kvpool.dev/pool": "demo"}
    if injected:
        annotations["kvpool.dev/injected"] = "team/demo@h"
    mount = {"name": "kvpool-config", "mountPath": "/etc/kvpool"}
    status = {"name": "main", "ready": ready, "state": {"running": {}}, "containerID": run}
    return {
        "metadata": {
            "name": "web-0", "namespace": "team", "resourceVersion": str(version), "annotations": annotations,
        },
        "spec": {"containers": [{"name": "main", "volumeMounts": [mount]}]},
        "status": {"podIP": "10.0.0.7", "containerStatuses": [status]},
    }  # fmt: skip


class Engines:
    """Answers in the place of engines."""

    def __init__(self, consumers: Consumers, *answers: EngineSays | None) -> None:
        self.answers = list(answers)
        self.asked: list[EngineAddress] = []
        self.news: list[tuple[str, str]] = []
        self.looks = EngineLooks(consumers, self.ask, self.news.append)

    async def ask(self, address: EngineAddress) -> EngineSays | None:
        self.asked.append(address)
        return self.answers.pop(0)


async def test_an_engine_is_heard_once_for_each_start_of_its_container() -> None:
    consumers = Consumers()
    engines = Engines(consumers, ACTIVE, EngineSays(EngineState.DISABLED, "no"))
    consumers.put(pod())
    assert await engines.looks.look(POD) is None
    assert engines.news == [POOL]
    assert consumers.of(POOL)[0].says == ACTIVE
    consumers.put(pod(2))
    assert await engines.looks.look(POD) is None
    assert len(engines.asked) == 1
    assert consumers.put(pod(3, run="b")) == {POOL}, "what it said before its restart is no longer told"
    assert await engines.looks.look(POD) is None
    assert [address.run for address in engines.asked] == ["a", "b"]
    assert consumers.of(POOL)[0].says == EngineSays(EngineState.DISABLED, "no")


async def test_an_engine_that_is_not_there_to_be_asked() -> None:
    consumers = Consumers()
    engines = Engines(consumers)
    assert await engines.looks.look(POD) is None
    consumers.put(pod(ready=False))
    assert await engines.looks.look(POD) is None
    consumers.put(pod(2, injected=False))
    assert await engines.looks.look(POD) is None
    assert engines.asked == []


async def test_an_engine_that_does_not_answer_is_asked_again_less_and_less_often() -> None:
    consumers = Consumers()
    engines = Engines(consumers, *[None] * 9, ACTIVE, None)
    consumers.put(pod())
    pauses = [await engines.looks.look(POD) for _ in range(9)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert await engines.looks.look(POD) is None
    assert engines.news == [POOL]
    consumers.put(pod(2, run="b"))
    assert await engines.looks.look(POD) == FIRST_PAUSE_S


async def test_an_answer_of_a_run_that_is_over_is_dropped() -> None:
    consumers = Consumers()
    consumers.put(pod())
    address = consumers.unheard(POD)
    assert address is not None
    consumers.put(pod(2, run="b"))
    assert consumers.heard(POD, address, ACTIVE) == set()
    assert consumers.of(POOL)[0].says is None


def test_a_list_of_metadata_does_not_hide_what_was_heard() -> None:
    consumers = Consumers()
    consumers.put(pod())
    address = consumers.unheard(POD)
    assert address is not None
    consumers.heard(POD, address, ACTIVE)
    consumers.begin_list()
    kept = consumers.of(POOL)
    consumers.replace(kept)
    assert consumers.of(POOL)[0].says == ACTIVE
    assert consumers.put(pod(2)) == set()
