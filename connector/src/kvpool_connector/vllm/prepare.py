"""Before vLLM's factory builds our spec: read the configuration, check that it can be served, choose the chunk size."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvpool_connector import config as kvpool_config
from kvpool_connector.config import ConfigError, ConnectorConfig
from kvpool_connector.config.lmcache import Line
from kvpool_connector.log import get_logger
from kvpool_connector.vllm import support
from kvpool_connector.vllm.chunks import blocks_near_chunk, blocks_per_chunk
from kvpool_connector.vllm.facts import engine_facts, hash_seed
from kvpool_connector.vllm.handover import Role
from kvpool_connector.vllm.kv_abi import KV_ABI, kv_abi
from kvpool_connector.vllm.sharing import share_of, shared_out
from kvpool_connector.vllm.spec import EXTRA_KEY, Settings

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.kv_offload.config import OffloadingConfig

logger = get_logger(__name__)

SPEC = {"spec_name": "KVPoolSpec", "spec_module_path": "kvpool_connector.vllm.spec"}
"""How vLLM's factory finds our spec."""


def reconsidered(config: ConnectorConfig, hash_algorithm: str) -> tuple[ConnectorConfig, list[Line]]:
    """Leave out a store that could never answer, and say what costs hits in an engine like this.

    Args:
        hash_algorithm: vLLM's ``--prefix-caching-hash-algo``.
    """
    said: list[Line] = []
    if kv_abi(vllm.__version__) is None:
        said.append(
            Line(
                f"vLLM {vllm.__version__} was not checked by this version of kvpool: this engine shares blocks with "
                f"engines of exactly this version; checked: {', '.join(KV_ABI)}",
                warning=True,
            )
        )
    shared = [name for name, tier in (("remote", config.remote), ("tiers.disk", config.tiers.disk)) if tier is not None]
    if shared and hash_seed(hash_algorithm) is None:
        said.append(
            Line(
                f"with --prefix-caching-hash-algo {hash_algorithm} and without PYTHONHASHSEED vLLM draws a seed for its "
                f"block hashes at each start, so no other engine can find this one's blocks, nor can this one after a "
                f"restart ({' and '.join(shared)} configured): the remote store is not used, and the disk tier begins "
                "empty. Set PYTHONHASHSEED to one number in all engines, or --prefix-caching-hash-algo sha256_cbor",
                warning=True,
            )
        )
        config = config.model_copy(update={"remote": None})
    return config, said


def _failure_policy(transfer: KVTransferConfig, *, from_lmcache: bool) -> list[Line]:
    """Say what a failed load does to a request. LMCache's manifests leave that at vLLM's default, which
    is an error for the user: there it is changed, since the scheduler looks at it later."""
    if transfer.kv_load_failure_policy == "recompute":
        return []
    if from_lmcache:
        transfer.kv_load_failure_policy = "recompute"
        return []
    return [
        Line(
            f"kv_load_failure_policy is {transfer.kv_load_failure_policy!r}: a request whose load fails ends with an error; "
            "set it to 'recompute'",
            warning=True,
        )
    ]


def _role(named: str | None, config: ConnectorConfig) -> tuple[Role, list[Line]]:
    """Return what the engine does with the store: a part of it only where there is a store."""
    role = Role(named)
    if role is Role.BOTH or config.remote is not None:
        return role, []
    remark = Line(
        f"kv_role is {role.value}, and kvpool has no store through which prefill and decode engines meet: set "
        "remote in kvpool's configuration; until then the engine keeps a cache of its own, as with kv_both",
        warning=True,
    )
    return Role.BOTH, [remark]


def _chunk_blocks(
    offloading: OffloadingConfig, kv_cache_config: KVCacheConfig, config: ConnectorConfig, *, from_lmcache: bool
) -> tuple[int, list[Line]]:
    """Return how many of vLLM's blocks a chunk has. A chunk size from LMCache's configuration is taken
    as nearly as the layout allows; kvpool's own setting has to fit.

    Raises:
        ConfigError: the configured ``chunk_tokens`` is not a multiple of a block.
    """
    specs = support.group_specs(kv_cache_config)
    alone = len(specs) == 1 and all(isinstance(spec, FullAttentionSpec) for spec in specs)
    sizes = offloading.worker_kv_bytes_per_block, [group.tokens_per_block for group in offloading.groups]
    if from_lmcache and config.chunk_tokens is not None:
        blocks, but = blocks_near_chunk(*sizes, single_full_group=alone, chunk_tokens=config.chunk_tokens)
        return blocks, [Line(but, warning=True)] if but else []
    return blocks_per_chunk(*sizes, single_full_group=alone, chunk_tokens=config.chunk_tokens), []


def prepare(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, role: KVConnectorRole) -> None:
    """Leave our settings where vLLM's factory and our spec look for them.

    Args:
        role: the scheduler's half says where the configuration came from; the ranks read the same and are silent.

    Raises:
        ConfigError: configuration, weights or layout cannot be used; one message that names the setting to change.
    """
    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    extra = {key: value for key, value in transfer.kv_connector_extra_config.items() if key not in SPEC}
    for key in ("blocks_per_chunk", "block_size"):
        if key in extra and EXTRA_KEY not in extra:
            raise ConfigError(f"kv_connector_extra_config.{key}: use chunk_tokens in kvpool's configuration instead")
    extra.pop("blocks_per_chunk", None)  # ours, from an earlier call: vLLM builds two connectors from one configuration
    found = kvpool_config.find(extra, ranks=vllm_config.parallel_config.world_size)
    share = share_of(vllm_config)
    config = shared_out(found.config, share, sizes=not found.from_lmcache)
    said = list(found.lines)
    if share.engines > 1 and not found.from_lmcache:
        said.append(
            Line(
                f"data-parallel engine {share.index} of {share.engines}: 1/{share.local} of the tiers' sizes is its own"
            )
        )
    config, remarks = reconsidered(config, vllm_config.cache_config.prefix_caching_hash_algo)
    said += remarks + _failure_policy(transfer, from_lmcache=found.from_lmcache)
    kv_role, remarks = _role(transfer.kv_role, config)
    said += remarks
    transfer.kv_connector_extra_config = extra
    support.check(support.gather(vllm_config, kv_cache_config))
    offloading = build_offloading_config(vllm_config, kv_cache_config)
    blocks, remarks = _chunk_blocks(offloading, kv_cache_config, config, from_lmcache=found.from_lmcache)
    for line in said + remarks if role is KVConnectorRole.SCHEDULER else ():
        logger.log(logging.WARNING if line.warning else logging.INFO, "kvpool: %s", line.text)
    ours = {
        "blocks_per_chunk": blocks,
        "offload_prompt_only": not config.offload_generated_tokens,
        EXTRA_KEY: Settings(config, engine_facts(vllm_config, config), kv_role),
    }
    transfer.kv_connector_extra_config = extra | SPEC | ours
