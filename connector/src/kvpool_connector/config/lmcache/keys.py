"""Every key of LMCache's configuration, and what it means here.

The names are those of ``_CONFIG_DEFINITIONS`` in lmcache 0.5.6; a test compares them with the installed package, another one
compares this list with the table of docs/lmcache.md.
"""

from __future__ import annotations

import enum


class Verdict(enum.Enum):
    """What becomes of a key."""

    HONOURED = "honoured"
    NO_EFFECT = "no effect here"
    NOT_OFFERED = "not offered"


HONOURED = {
    "chunk_size": "tokens of a chunk (chunk_tokens); rounded down to a multiple of vLLM's block size",
    "local_cpu": "false keeps the memory only as the way to disk and store; what lies there is still a hit",
    "max_local_cpu_size": "the memory tier: GB of 1024^3 bytes for each rank, so times the ranks in tiers.cpu.size",
    "local_disk": "the disk tier's folder; of several, the first",
    "max_local_disk_size": "the disk tier: GB of 1024^3 bytes for each rank, so times the ranks in tiers.disk.size",
    "remote_url": "the shared store",
    "remote_serde": "naive; anything else is refused",
    "cache_policy": "LRU is lru; LFU is slru, which also prefers what was used more than once; FIFO and MRU are lru",
    "save_decode_cache": "whether the KV of generated tokens is kept",
    "blocking_timeout_secs": "upper bound on reads and writes of the store (fetch_ms, put_ms), at most 120 s",
    "lookup_timeout_ms": "upper bound on asking the store (lookup_ms), at most 10 s",
    "extra_config": "the stores' own keys are read, the others are listed at start",
}
_NO_EFFECT = {
    "a chunk is copied with all its layers, beside the computation": ("use_layerwise", "use_gpu_connector_v3"),
    "loads never block the scheduler": ("enable_async_loading", "enable_scheduler_bypass_lookup"),
    "keys are vLLM's own block hashes: set PYTHONHASHSEED and --prefix-caching-hash-algo sha256_cbor": (
        "pre_caching_hash_algorithm",
    ),
    "each rank asks for its memory once, at start": (
        "local_cpu_use_hugepages", "reserve_local_cpu_size", "numa_mode", "enable_lazy_memory_allocator",
        "lazy_memory_initial_ratio", "lazy_memory_expand_trigger_ratio", "lazy_memory_step_ratio", "lazy_memory_safe_size",
    ),
    "each rank has a slab of its own in the one folder": ("local_disk_path_sharding",),
    "a hit is loaded when that was measured to be faster than computing": ("min_retrieve_tokens", "hit_miss_ratio"),
    "a block is pinned for the length of its transfer, which has a deadline": ("pin_timeout_sec", "pin_check_interval_sec"),
    "kvpool leaves Python's garbage collector alone": ("py_enable_gc",),
    "the scheduler's process answers lookups": ("lookup_server_worker_ids",),
    "vLLM's --kv-events-config decides": ("enable_kv_events",),
    "vLLM's metrics and log say it": (
        "enable_chunk_statistics", "chunk_statistics_auto_start_statistics", "chunk_statistics_auto_exit_timeout_hours",
        "chunk_statistics_auto_exit_target_unique_chunks", "chunk_statistics_strategy",
    ),
    "an engine needs no name": ("lmcache_instance_id",),
}  # fmt: skip
_NOT_OFFERED = {
    "only prefixes are reused": (
        "enable_blending", "blend_recompute_ratios", "blend_thresholds", "blend_check_layers", "blend_min_tokens",
        "blend_special_str",
    ),
    "only whole chunks are stored": ("save_unfull_chunk",),
    "each tier is read and written by its own policy": ("store_location", "retrieve_locations", "priority_limit"),
    "engines share through the store, not with each other": (
        "enable_p2p", "p2p_host", "p2p_init_ports", "p2p_lookup_ports",
    ),
    "there is no controller; vLLM's metrics and the operator's status tell what is cached": (
        "enable_controller", "controller_pull_url", "controller_reply_url", "lmcache_worker_ports", "lmcache_worker_ids",
        "lmcache_worker_heartbeat_delay_time", "lmcache_worker_heartbeat_time",
    ),
    "prefill hands over to decode through the store, or by vLLM's NixlConnector beside this one in a MultiConnector": (
        "enable_pd", "pd_role", "pd_buffer_size", "pd_buffer_device", "pd_peer_host", "pd_peer_init_port", "pd_peer_alloc_port",
        "pd_peer_query_port", "pd_proxy_host", "pd_proxy_port", "pd_allocation_timeout_sec", "pd_shutdown_timeout_sec",
        "pd_condition_poll_interval_sec", "pd_max_prefill_len", "pd_backend_mode", "pd_skip_proxy_notification",
        "pd_bidirectional", "transfer_channel", "nixl_backends", "nixl_buffer_size", "nixl_buffer_device",
    ),
    "files are read through host memory: use local_disk": ("gds_path", "gds_path_sharding", "gds_buffer_size", "use_gds",
                                                           "gds_backend"),
    "no store of this kind": ("maru_path", "maru_pool_size", "audit_actual_remote_url"),
    "no code is loaded by configuration": (
        "runtime_plugin_locations", "storage_plugins", "remote_storage_plugins", "script_allowed_imports",
        "run_script_api_enabled",
    ),
    "the connector opens no port": (
        "internal_api_server_enabled", "internal_api_server_host", "internal_api_server_port_start",
        "internal_api_server_include_index_list", "internal_api_server_socket_path_prefix",
    ),
    "the store itself is asked": ("external_lookup_client",),
    "that server is LMCache's, for SGLang": ("mp_host", "mp_port"),
    "the configuration is read from this machine only": ("remote_config_url", "app_id"),
    "only KV is kept": (
        "enable_hidden_state_cache", "max_hidden_state_cpu_size", "hidden_state_layers", "hidden_states_retrieve_mode",
    ),
}  # fmt: skip

FORMER_NAMES = {"plugin_locations": "runtime_plugin_locations", "external_backends": "storage_plugins"}
"""Deprecated, and still read by lmcache 0.5.6."""

KEYS: dict[str, tuple[Verdict, str]] = {
    **{key: (Verdict.HONOURED, meaning) for key, meaning in HONOURED.items()},
    **{key: (Verdict.NO_EFFECT, why) for why, keys in _NO_EFFECT.items() for key in keys},
    **{key: (Verdict.NOT_OFFERED, why) for why, keys in _NOT_OFFERED.items() for key in keys},
}
"""Key: what becomes of it, and why."""
