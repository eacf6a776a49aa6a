"""LMCache's configuration read as kvpool's: those of the guides, and which of several is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from connector.tests.unit.lmcache import file, text, variables
from kvpool_connector.config import ConfigError, find

# ---- the configurations of the guides --------------------------------------------------------------------------


def test_variables_of_ray_serves_guide() -> None:
    """Memory alone. LMCache's GB are 1024^3 bytes of a rank; ours are the engine's."""
    found = variables(2, local_cpu="True", chunk_size="256", max_local_cpu_size="100")
    assert found.config.tiers.cpu.size == 200 << 30
    assert found.config.chunk_tokens == 256
    assert found.from_lmcache
    assert not found.config.offload_generated_tokens  # LMCache's default
    assert "memory tier of 100 GiB for each of 2 ranks" in text(found)


def test_the_file_of_ray_serves_guide(tmp_path: Path) -> None:
    """Mooncake, with etcd for its metadata."""
    found = file(
        tmp_path,
        """
chunk_size: 256
remote_url: "mooncakestore://mooncake-master.default.svc.cluster.local:50051/"
remote_serde: "naive"
local_cpu: true
max_local_cpu_size: 64
extra_config:
  metadata_server: "etcd://etcd.default.svc.cluster.local:2379"
  protocol: "tcp"
  master_server_address: "mooncake-master.default.svc.cluster.local:50051"
  global_segment_size: 21474836480
""",
    )
    assert found.config.remote is not None
    assert found.config.remote.model_dump(exclude_defaults=True) == {
        "type": "mooncake", "master": "mooncake-master.default.svc.cluster.local:50051",
        "metadata_server": "etcd://etcd.default.svc.cluster.local:2379", "segment_size": 20 << 30,
    }  # fmt: skip
    assert not any(line.warning for line in found.lines), found.lines


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("redis://redis.default.svc.cluster.local:6379", {"type": "redis", "host": "redis.default.svc.cluster.local"}),
        ("lm://lmcache-server:8080", {"type": "lmcache", "host": "lmcache-server", "port": 8080}),
    ],
)
def test_the_file_of_kserves_guide(tmp_path: Path, url: str, store: dict[str, Any]) -> None:
    """With the variables that its manifest sets beside it."""
    found = file(
        tmp_path,
        f'local_cpu: true\nchunk_size: 256\nmax_local_cpu_size: 2.0\nremote_url: "{url}"\nremote_serde: "naive"\n',
        {"LMCACHE_USE_EXPERIMENTAL": "True", "LMCACHE_LOG_LEVEL": "INFO"},
    )
    assert found.config.remote is not None
    assert found.config.remote.model_dump(exclude_defaults=True) == store
    assert found.config.tiers.cpu.size == 2 << 30
    assert "nothing about the cache, not read: LMCACHE_LOG_LEVEL, LMCACHE_USE_EXPERIMENTAL" in text(found)
    assert not any(line.warning for line in found.lines)


def test_the_nested_file(tmp_path: Path) -> None:
    """A server without a scheme is LMCache's own."""
    found = file(
        tmp_path,
        "local_cpu:\n  enabled: true\n  buffer_size_gb: 20\n"
        'remote:\n  enabled: true\n  url: "lmcache-server:8080"\n  serde: "naive"\n',
    )
    assert found.config.tiers.cpu.size == 20 << 30
    assert found.config.remote is not None
    assert found.config.remote.where == "lmcache at lmcache-server:8080"
    assert "local_cpu.enabled=True" in text(found)
    assert "local_cpu.buffer_size_gb=20" in text(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("remote: {enabled: true}", "remote.url: missing, though remote.enabled is true"),
        (
            "local_cpu: {enabled: true, buffer_size: 1}",
            "local_cpu.buffer_size: unknown key, did you mean 'buffer_size_gb'?",
        ),
        ("local_cpu: {enabled: false}", "local_cpu.enabled: off, and there is neither local_disk nor remote_url"),
        ("local_cpu: {enabled: true, buffer_size_gb: 0}", "local_cpu.buffer_size_gb: 0 GB holds nothing"),
        ("remote: {enabled: maybe, url: 'h:1'}", "remote.enabled: 'maybe' is neither True nor False"),
        (
            "local_cpu: {enabled: true}\nremote: {enabled: true, url: 'h:1', serde: cachegen}",
            "remote.serde: 'cachegen'",
        ),
    ],
)
def test_a_nested_file_with_a_fault(tmp_path: Path, content: str, message: str) -> None:
    """Named by section and key, as the user wrote it."""
    with pytest.raises(ConfigError) as caught:
        file(tmp_path, content)
    assert str(caught.value).startswith(message)


def test_a_remote_that_is_not_enabled(tmp_path: Path) -> None:
    """Is not there."""
    found = file(tmp_path, "local_cpu: {enabled: true}\nremote: {enabled: false, url: 'h:1', serde: naive}")
    assert found.config.remote is None


def test_an_empty_file_is_lmcaches_defaults(tmp_path: Path) -> None:
    """5 GB for each rank."""
    assert file(tmp_path, "", ranks=4).config.tiers.cpu.size == 20 << 30


# ---- which one is read -----------------------------------------------------------------------------------------


def test_kvpools_own_configuration_wins(tmp_path: Path) -> None:
    """In one line, and whatever the other one says."""
    ours = tmp_path / "kvpool.yaml"
    ours.write_text("tiers: {cpu: {size: 1Gi}}")
    other = {"LMCACHE_CHUNK_SIZE": "abc", "LMCACHE_LOG_LEVEL": "INFO"}
    for found, name in (
        (find({}, {"KVPOOL_CONFIG_FILE": str(ours)} | other), "KVPOOL_CONFIG_FILE"),
        (find({"kvpool": {"tiers": {"cpu": {"size": "1Gi"}}}}, other), "kv_connector_extra_config.kvpool"),
    ):
        assert found.config.tiers.cpu.size == 1 << 30
        assert not found.from_lmcache
        assert text(found) == f"{name} is used; LMCache's configuration (LMCACHE_CHUNK_SIZE) is not read"
    assert find({}, {"KVPOOL_CONFIG_FILE": str(ours), "LMCACHE_LOG_LEVEL": "INFO"}).lines == ()
    file_too = {"KVPOOL_CONFIG_FILE": str(ours), "LMCACHE_CONFIG_FILE": "/missing"}
    assert "(LMCACHE_CONFIG_FILE) is not read" in text(find({}, file_too))


def test_the_file_wins_over_variables(tmp_path: Path) -> None:
    """And they are named."""
    found = file(tmp_path, "max_local_cpu_size: 2", {"LMCACHE_MAX_LOCAL_CPU_SIZE": "3", "LMCACHE_CHUNK_SIZE": "x"})
    assert found.config.tiers.cpu.size == 2 << 30
    assert found.config.chunk_tokens is None
    (warning,) = [line for line in found.lines if line.warning]
    assert warning.text.startswith(
        "LMCACHE_CHUNK_SIZE, LMCACHE_MAX_LOCAL_CPU_SIZE: not read, since LMCACHE_CONFIG_FILE="
    )


def test_extra_configuration_of_vllm_wins_over_both(tmp_path: Path) -> None:
    """LMCache reads keys with its prefix there."""
    found = find({"lmcache.chunk_size": 512}, {"LMCACHE_CHUNK_SIZE": "256"})
    assert found.config.chunk_tokens == 512
    with pytest.raises(ConfigError, match=r"kv_connector_extra_config\.lmcache\.chunk_size: 'x' is not a whole number"):
        find({"lmcache.chunk_size": "x"}, {})


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LMCACHE_LOG_LEVEL": "INFO", "LMCACHE_USE_EXPERIMENTAL": "True"},
        {"LMCACHE_SERVER_SERVICE_HOST": "10.0.0.1", "LMCACHE_SERVER_PORT_8080_TCP_ADDR": "10.0.0.1"},
    ],
)
def test_no_configuration_at_all(environ: dict[str, str]) -> None:
    """Not what LMCache's log level, or a Service with such a name, leaves in the environment."""
    with pytest.raises(ConfigError, match=r"no configuration: set KVPOOL_CONFIG_FILE .* LMCACHE_MAX_LOCAL_CPU_SIZE=8"):
        find({"nixl_backends": ["UCX"]}, environ)


def test_variables_of_a_service_are_not_mentioned() -> None:
    """Every Pod of the namespace has them."""
    found = find({}, {"LMCACHE_CHUNK_SIZE": "16", "LMCACHE_SERVER_PORT": "tcp://10.0.0.1:8080"})
    assert "LMCACHE_SERVER" not in text(found)
