"""Remote stores behind one protocol. No torch, no vllm: memoryviews in, one outcome per key out."""

from kvpool_connector.stores.backoff import Backoff
from kvpool_connector.stores.base import Loan, Outcome, Store
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.memory import Memory
from kvpool_connector.stores.refusals import ELSEWHERE

__all__ = ["ELSEWHERE", "Backoff", "Breaker", "Loan", "Memory", "Outcome", "Store"]
