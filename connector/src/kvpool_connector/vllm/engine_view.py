"""vLLM's engine as the scheduler's half of the pool sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm.v1.request import RequestStatus

from kvpool_connector.vllm.handover import Role

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import OffloadingConnectorScheduler
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


def pass_tokens(scheduled: SchedulerOutput) -> tuple[int, int]:
    """Return how many tokens a step prefills and how many it decodes.

    A request that decodes is given one token and its drafts, and one that prefills is given more,
    also where it computes again what it had before it was preempted. The last token of a prompt
    alone costs what a decode costs.
    """
    drafts = scheduled.scheduled_spec_decode_tokens
    decode_tokens = sum(
        tokens
        for request, tokens in scheduled.num_scheduled_tokens.items()
        if tokens <= 1 + len(drafts.get(request, ()))
    )
    return scheduled.total_num_scheduled_tokens - decode_tokens, decode_tokens


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
