"""Remote stores behind one protocol. No torch, no vllm: memoryviews in, one outcome per key out."""

from kvpool_connector.stores.base import Outcome, Store
from kvpool_connector.stores.breaker import Breaker

__all__ = ["Breaker", "Outcome", "Store"]
