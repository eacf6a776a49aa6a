"""kvpool's connector: moves vLLM's KV blocks between device memory, host memory and a shared store.

Layers, enforced by import contracts: ``vllm > {scheduler, worker} > tiers > stores > {format, identity, weights} > config``.
"""

__version__ = "0.1.0"
