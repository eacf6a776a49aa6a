"""vLLM's engine as the scheduler's half of the pool sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm.v1.request import RequestStatus

from kvpool_connector.vllm.handover import Role

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import OffloadingConnectorScheduler
    from vllm.v1.request import Request


class RunningRequests:
    """An `EngineView` over the requests that the stock scheduler half follows."""

    def __init__(self, scheduler: OffloadingConnectorScheduler, role: Role) -> None:
        self._scheduler = scheduler
        self._role = role

    def others_run(self) -> bool:
        """Return whether a request runs. A decode engine waits for what its prefill engine writes, whoever else runs."""
        return self._role is not Role.CONSUMER and any(True for _ in self._running())

    def prefill_tokens(self) -> int:
        """Return how many prompt tokens of running requests are not computed yet."""
        return sum(max(request.num_prompt_tokens - request.num_computed_tokens, 0) for request in self._running())

    def _running(self) -> Iterator[Request]:
        for status in self._scheduler._req_status.values():
            if status.req.status is RequestStatus.RUNNING:
                yield status.req
