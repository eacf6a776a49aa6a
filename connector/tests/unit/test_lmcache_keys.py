"""Every key that LMCache knows is honoured or answered, and no content is an unexpected error."""

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

from connector.tests.unit.lmcache import ROOT, file, text, variables
from kvpool_connector.config import ConfigError, ConnectorConfig, find
from kvpool_connector.config.lmcache.keys import FORMER_NAMES, KEYS, Verdict


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
