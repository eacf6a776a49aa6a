"""Data-parallel engines share what one configuration grants; no engine is started."""

from __future__ import annotations

import pytest
from vllm.config import KVTransferConfig, ParallelConfig, VllmConfig

from kvpool_connector.config import parse
from kvpool_connector.vllm.plugin import register
from kvpool_connector.vllm.sharing import Share, share_of, shared_out

FOLDER = "/var/kv"


@pytest.fixture(autouse=True)
def _plugin() -> None:
    """vLLM calls it in each of its processes, as a plug-in."""
    register()


def transfer() -> KVTransferConfig:
    return KVTransferConfig(
        kv_connector="KVPoolConnector", kv_connector_module_path="kvpool_connector.vllm", kv_role="kv_both"
    )


def engine_of(index: int, local: int) -> VllmConfig:
    """The configuration in the process of one of four engines, as vLLM leaves it there for a dense model."""
    parallel = ParallelConfig(data_parallel_size=4, data_parallel_size_local=local)
    config = VllmConfig(parallel_config=parallel, kv_transfer_config=transfer())
    config.parallel_config.data_parallel_index = index
    config.parallel_config.reconfigure_for_independent_dp_rank()
    return config


def test_data_parallel_engines_share_their_node() -> None:
    assert share_of(VllmConfig(kv_transfer_config=transfer())) == Share(0, 1, 1)
    assert share_of(engine_of(3, local=4)) == Share(3, 4, 4)
    assert share_of(engine_of(3, local=2)) == Share(3, 4, 2)


def test_without_the_plug_in_no_memory_is_taken_twice() -> None:
    """A list of allowed plug-ins (VLLM_PLUGINS) may leave it out."""
    config = engine_of(3, local=2)
    assert config.kv_transfer_config is not None
    config.kv_transfer_config.kv_connector_extra_config.clear()
    assert share_of(config) == Share(3, 4, 4)


def test_tiers_are_shared_out() -> None:
    """Sizes by the engines of the node, folders by the engine's number."""
    config = parse({"tiers": {"cpu": {"size": "8Gi"}, "disk": {"path": FOLDER, "size": "64Gi"}}}, "test")
    assert shared_out(config, Share()) == config
    shares = [shared_out(config, Share(index, 4, 2)).tiers for index in (2, 3)]
    assert [tiers.cpu.size for tiers in shares] == [4 << 30] * 2
    assert [(tiers.disk.size, tiers.disk.path) for tiers in shares if tiers.disk is not None] == [
        (32 << 30, f"{FOLDER}/dp-2"),
        (32 << 30, f"{FOLDER}/dp-3"),
    ]


def test_sizes_of_an_engine_are_not_shared_out_again() -> None:
    """LMCache's sizes are those of a rank."""
    config = parse({"tiers": {"cpu": {"size": "8Gi"}}}, "test")
    assert shared_out(config, Share(1, 4, 2), sizes=False) == config
