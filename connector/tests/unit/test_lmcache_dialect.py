"""LMCache's configuration read as kvpool's: what each key means, what is said, what is refused."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.config import ConfigError, ConnectorConfig, Found, find
from kvpool_connector.config.lmcache.keys import FORMER_NAMES, KEYS, Verdict

ROOT = Path(__file__).resolve().parents[3]
PASSWORD = "quarter/deck@7"
QUOTED = "quarter%2Fdeck%407"


def variables(ranks: int = 1, /, **keys: str) -> Found:
    """By ``LMCACHE_*`` variables."""
    return find({}, {f"LMCACHE_{key.upper()}": value for key, value in keys.items()}, ranks=ranks)


def file(folder: Path, text: str, environ: dict[str, str] | None = None, ranks: int = 1) -> Found:
    """By ``LMCACHE_CONFIG_FILE``."""
    path = folder / "lmcache.yaml"
    path.write_text(text)
    return find({}, {"LMCACHE_CONFIG_FILE": str(path)} | (environ or {}), ranks=ranks)


def refused(**keys: str) -> str:
    """The message."""
    with pytest.raises(ConfigError) as caught:
        variables(**keys)
    return str(caught.value)


def remote(**keys: str) -> dict[str, Any]:
    """The store's section, as far as it differs from the defaults."""
    found = variables(**keys).config.remote
    assert found is not None
    return found.model_dump(exclude_defaults=True)


def text(found: Found) -> str:
    """All that is said."""
    return "\n".join(line.text for line in found.lines)


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


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["True", "true", "1", "'True'", ' "true" '])
def test_true(word: str) -> None:
    """As LMCache reads it."""
    assert variables(save_decode_cache=word).config.offload_generated_tokens


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"chunk_size": "abc"}, "LMCACHE_CHUNK_SIZE: 'abc' is not a whole number from 1 to 65536"),
        ({"chunk_size": "0"}, "LMCACHE_CHUNK_SIZE: '0' is not a whole number"),
        ({"chunk_size": "2.5"}, "LMCACHE_CHUNK_SIZE: '2.5' is not a whole number"),
        ({"max_local_cpu_size": "0"}, "LMCACHE_MAX_LOCAL_CPU_SIZE: '0' GB holds nothing: write the GB that each rank may use"),
        ({"max_local_cpu_size": "-1"}, "LMCACHE_MAX_LOCAL_CPU_SIZE: '-1' GB holds nothing"),
        ({"max_local_cpu_size": "5GB"}, "LMCACHE_MAX_LOCAL_CPU_SIZE: '5GB' is not a number of GB, such as 5.0"),
        ({"max_local_cpu_size": "nan"}, "LMCACHE_MAX_LOCAL_CPU_SIZE: 'nan' is not a number of GB"),
        ({"local_cpu": "yes"}, "LMCACHE_LOCAL_CPU: 'yes' is neither True nor False"),
        ({"local_cpu": "False"}, "LMCACHE_LOCAL_CPU: off, and there is neither LMCACHE_LOCAL_DISK nor LMCACHE_REMOTE_URL"),
        ({"local_disk": "/d"}, "LMCACHE_MAX_LOCAL_DISK_SIZE: LMCACHE_LOCAL_DISK is set, but not how many GB"),
        ({"max_local_disk_size": "5"}, "LMCACHE_LOCAL_DISK: missing, though LMCACHE_MAX_LOCAL_DISK_SIZE is set"),
        ({"cache_policy": "ARC"}, "LMCACHE_CACHE_POLICY: 'ARC' must be one of LRU, LFU, FIFO, MRU"),
        ({"remote_serde": "cachegen"}, "LMCACHE_REMOTE_SERDE: 'cachegen' is not offered: KV is stored as it is: set it to naive"),
        ({"extra_config": "{"}, "LMCACHE_EXTRA_CONFIG: not JSON (line 1, column 2)"),
        ({"extra_config": "[1]"}, "LMCACHE_EXTRA_CONFIG: a mapping is expected, not list"),
        ({"remote_url": "store"}, "LMCACHE_REMOTE_URL: no port: write scheme://host:port"),
        ({"remote_url": "lm://store"}, "LMCACHE_REMOTE_URL: no port"),
        ({"remote_url": "lm://:65432"}, "LMCACHE_REMOTE_URL: no host"),
        ({"remote_url": "rediss://h:1"}, "LMCACHE_REMOTE_URL: rediss:// cannot be used: TLS is not offered"),
        ({"remote_url": "unix:///s"}, "LMCACHE_REMOTE_URL: unix:// cannot be used: a socket file is not offered"),
        ({"remote_url": "redis-cluster://h:1"}, "LMCACHE_REMOTE_URL: redis-cluster:// cannot be used"),
        ({"remote_url": "s3://bucket"}, "LMCACHE_REMOTE_URL: no store of the kind s3:// here: use one of redis, valkey"),
        ({"remote_url": "redis://user@h:1"}, "LMCACHE_REMOTE_URL: a user without a password"),
        ({"remote_url": "redis://h:1/x"}, "LMCACHE_REMOTE_URL: the database: 'x' is not a whole number"),
        ({"remote_url": "redis://h:1?protocol=3"}, "LMCACHE_REMOTE_URL: ?protocol= is not offered: remove it"),
        ({"remote_url": "valkey://h:1", "extra_config": '{"tls_enable": true}'}, "extra_config.tls_enable: TLS is not offered"),
        ({"remote_url": "valkey://h:1", "extra_config": '{"valkey_mode": "cluster"}'}, "extra_config.valkey_mode: Redis Cluster"),
        ({"remote_url": "mooncakestore://h:1", "extra_config": '{"protocol": "ascend"}'}, "extra_config.protocol: 'ascend'"),
        (
            {"remote_url": "mooncakestore://h:1", "extra_config": '{"global_segment_size": "20GB"}'},
            "extra_config.global_segment_size: '20GB' is not a whole number",
        ),
        (
            {"remote_url": "infinistore://h:1", "extra_config": '{"infinistore_link_type": "x"}'},
            "extra_config.infinistore_link_type: 'X' must be one of LINK_ETHERNET, LINK_IB",
        ),
        ({"blocking_timeout_secs": "0", "remote_url": "lm://h:1"}, "LMCACHE_BLOCKING_TIMEOUT_SECS: '0' is not a whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_the_fix(keys: dict[str, str], message: str) -> None:
    """One message; LMCache would go on with another value."""
    assert refused(**keys).startswith(message), refused(**keys)


def test_local_memory_that_is_off_stays_the_way_to_a_store() -> None:
    """LMCache keeps a buffer of the same size then, too."""
    found = variables(local_cpu="False", remote_url="lm://h:1")
    assert found.config.tiers.cpu.size == 5 << 30
    assert "LMCACHE_LOCAL_CPU is off: the memory stays the way" in text(found)


def test_the_disk_tier() -> None:
    """By rank, too; of several folders the first."""
    found = variables(2, local_disk="file:///d/,/e", max_local_disk_size="1.5", cache_policy="lfu")
    assert found.config.tiers.disk is not None
    assert found.config.tiers.disk.model_dump(exclude_defaults=True) == {
        "path": "/d/", "size": 3 << 30, "eviction_policy": "slru"
    }  # fmt: skip
    assert "LMCACHE_LOCAL_DISK: of 2 folders only /d/ is used" in text(found)


def test_timeouts() -> None:
    """Within what kvpool lets wait at most."""
    assert remote(remote_url="lm://h:1", blocking_timeout_secs="10", lookup_timeout_ms="3000")["timeouts"] == {
        "lookup_ms": 3000, "fetch_ms": 10_000,
    }  # fmt: skip
    assert remote(remote_url="lm://h:1", blocking_timeout_secs="999", lookup_timeout_ms="99999")["timeouts"] == {
        "lookup_ms": 10_000, "fetch_ms": 120_000, "put_ms": 120_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "section"),
    [
        ({"remote_url": "redis://h"}, {"type": "redis", "host": "h"}),
        ({"remote_url": "redis://[::1]:7000/3"}, {"type": "redis", "host": "::1", "port": 7000, "database": 3}),
        ({"remote_url": "redis://h:1?db=4"}, {"type": "redis", "host": "h", "port": 1, "database": 4}),
        (
            {"remote_url": "valkey://h:1", "extra_config": '{"valkey_enable_ttl": 1, "valkey_ttl_sec": 6, "valkey_database": 2}'},
            {"type": "valkey", "host": "h", "port": 1, "ttl_s": 6, "database": 2},
        ),
        (
            {"remote_url": "redis-sentinel://a:1,b:2"},
            {
                "type": "redis",
                "sentinel": {
                    "master_name": "redismaster", "endpoints": ({"host": "a", "port": 1}, {"host": "b", "port": 2}),
                },
            },
        ),
        ({"remote_url": "h:1"}, {"type": "lmcache", "host": "h", "port": 1}),
        (
            {"remote_url": "mooncakestore://m:1", "extra_config": '{"mooncake_protocol": "rdma", "device_name": "mlx5_0", '
             '"local_hostname": "me", "local_buffer_size": 5}'},
            {
                "type": "mooncake", "master": "m:1", "protocol": "rdma", "devices": "mlx5_0", "local_host": "me",
                "segment_size": 3_355_443_200,
            },
        ),
        (
            {"remote_url": "infinistore://i:12345?device=mlx5_1", "extra_config": '{"infinistore_link_type": "LINK_IB"}'},
            {"type": "infinistore", "experimental": True, "host": "i", "port": 12345, "device": "mlx5_1", "link_type": "IB"},
        ),
    ],
)  # fmt: skip
def test_every_scheme(keys: dict[str, str], section: dict[str, Any]) -> None:
    """The store's section."""
    assert remote(**keys) == section


def test_the_name_of_the_sentinels_primary_comes_from_the_environment() -> None:
    """As for LMCache."""
    found = find({}, {"LMCACHE_REMOTE_URL": "redis-sentinel://a:1", "REDIS_SERVICE_NAME": "kv"})
    assert found.config.remote is not None
    assert found.config.remote.where == "redis, the primary of kv by the sentinels a:1"


# ---- passwords -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "username"),
    [
        ({"LMCACHE_REMOTE_URL": f"redis://:{QUOTED}@h:1"}, None),
        ({"LMCACHE_REMOTE_URL": f"redis://kv:{QUOTED}@h:1"}, "kv"),
        ({"LMCACHE_REMOTE_URL": f"redis-sentinel://kv:{QUOTED}@a:1,b:2"}, "kv"),
        ({"LMCACHE_REMOTE_URL": "resp://h:1", "LMCACHE_RESP_PASSWORD": PASSWORD}, None),
        (
            {"LMCACHE_REMOTE_URL": "valkey://h:1",
             "LMCACHE_EXTRA_CONFIG": f'{{"valkey_username": "kv", "valkey_password": "{PASSWORD}"}}'},
            "kv",
        ),
    ],
)  # fmt: skip
def test_a_password_is_in_no_text(environ: dict[str, str], username: str | None) -> None:
    """It is in a file that no other process can open, and which the stores read as any password file."""
    found = find({}, environ)
    remote = found.config.remote
    assert remote is not None
    path = remote.model_dump()["password_file"]
    assert (Path(path).read_text(), remote.model_dump()["username"]) == (PASSWORD, username)
    assert Path(path).stat().st_mode & 0o777 == 0o400
    shown = f"{found!r} {found.config!r} {found.config.model_dump_json()} {remote.where} {text(found)}"
    assert "quarter" not in shown
    again = find({}, environ).config.remote
    assert again is not None
    assert again.model_dump()["password_file"] == path  # one file, however often it is read
    listed = subprocess.run(["cat", path], capture_output=True, check=False, close_fds=True)
    assert b"quarter" not in listed.stdout


@pytest.mark.parametrize(
    "url",
    [
        "redis://:quarter/deck@h:1", "redis://:quarter#deck@h:1", "redis://u:123/quarter@h:1", "redis://:quarter@h:port",
        "redis://quarter@h:1", "lm://:quarter@", "rediss://:quarter@h:1", "s4://:quarter@h:1", "redis-sentinel://:quarter@a",
        "redis://u:1?quarter@h:1",
    ],
)  # fmt: skip
def test_a_url_with_a_fault_is_not_repeated(url: str) -> None:
    """Messages go to logs."""
    assert "quarter" not in refused(remote_url=url)


def test_a_file_that_is_not_yaml_is_not_repeated(tmp_path: Path) -> None:
    """The parser's message would quote the line."""
    with pytest.raises(ConfigError, match=r"is not YAML \(line 1, column") as caught:
        file(tmp_path, "remote_url: [redis://:quarter@h:1")
    assert "quarter" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        find({}, {"LMCACHE_CONFIG_FILE": str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match="a mapping is expected, not list"):
        file(tmp_path, "[1]")


# ---- every key is answered -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_is_answered(key: str) -> None:
    """By its name, with what it means."""
    value = {"extra_config": "{}", "local_cpu": "True", "local_disk": "/d", "remote_url": "lm://h:1", "remote_serde": "naive",
             "cache_policy": "LRU", "save_decode_cache": "1"}.get(key, "7")  # fmt: skip
    others = {"local_disk": {"max_local_disk_size": "1"}, "max_local_disk_size": {"local_disk": "/d"}}.get(key, {})
    found = variables(**{key: value}, **others)
    verdict, why = KEYS[key]
    (line,) = [line for line in found.lines if re.search(rf"\bLMCACHE_{key.upper()}\b", line.text)]
    assert line.warning == (verdict is Verdict.NOT_OFFERED)
    assert verdict is Verdict.HONOURED or why in line.text


def test_what_is_off_needs_no_warning() -> None:
    """Nobody asked for it."""
    found = variables(enable_p2p="False", enable_pd="0", store_location="")
    assert not any(line.warning for line in found.lines)
    assert "LMCACHE_ENABLE_P2P (off)" in text(found)


def test_keys_that_lmcache_does_not_know_either(tmp_path: Path) -> None:
    """A misspelt one would do nothing."""
    found = file(tmp_path, "chunk_sise: 3\nmax_local_cpu_size: 1\nplugin_locations: [a]\nextra_config: {s3_region: x}")
    assert "no configuration keys of lmcache 0.5.6, not read: chunk_sise" in text(found)
    assert "plugin_locations (no code is loaded by configuration)" in text(found)
    assert "extra_config.s3_region (kvpool's clients of stores have no such setting)" in text(found)


def definitions() -> tuple[set[str], dict[str, str]]:
    """Keys and deprecated names in the installed package's source. Parsed, not imported: its import takes half a minute."""
    source = ROOT / ".venvs/lmserver/lmcache/v1/config.py"
    if not source.exists():
        pytest.skip("LMCache is not here: run tools/setup.sh servers")
    found: dict[str, Any] = {}
    for node in ast.parse(source.read_text()).body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            found[target.id] = value
    keys = {ast.literal_eval(key) for key in found["_CONFIG_DEFINITIONS"].keys}
    aliases, deprecated = (
        ast.literal_eval(found["_CONFIG_ALIASES"]),
        [ast.literal_eval(k) for k in found["_DEPRECATED_CONFIGS"].keys],
    )
    return keys, {name: aliases[name] for name in deprecated if name in aliases}


def test_no_key_of_lmcache_is_forgotten() -> None:
    """The installed package is the list."""
    keys, former = definitions()
    assert set(KEYS) == keys
    assert former == FORMER_NAMES
    assert len(keys) == 108


def test_the_documents_table_has_every_key() -> None:
    """With the same words."""
    rows = [f"| `{key}` | {verdict.value} | {why} |" for key, (verdict, why) in KEYS.items()]
    document = (ROOT / "docs/lmcache.md").read_text()
    table = document.partition("<!-- keys -->\n")[2].partition("\n<!-- /keys -->")[0].splitlines()
    assert table[2:] == rows, "the table should read:\n" + "\n".join(rows)


@given(
    st.dictionaries(
        st.sampled_from(sorted(KEYS)), st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    )
)
def test_any_value_is_a_configuration_or_a_config_error(content: dict[str, Any]) -> None:
    """Never another exception."""
    with contextlib.suppress(ConfigError):
        found = find({f"lmcache.{key}": value for key, value in content.items()}, {})
        assert isinstance(found.config, ConnectorConfig)


def test_reading_it_needs_no_lmcache_and_no_torch() -> None:
    """It runs in the operator's image, too."""
    code = (
        "import sys; from kvpool_connector.config import find; find({}, {'LMCACHE_REMOTE_URL': 'redis://:p@h:1'})\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'vllm', 'numpy', 'lmcache', 'redis'}))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    assert run.stdout.strip() == ""
