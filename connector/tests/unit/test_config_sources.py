"""Where the configuration comes from: a file or the command line, never both, and what is said if it cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.tests.unit.configs import SMALLEST
from kvpool_connector.config import ConfigError, ConnectorConfig, load, parse


def test_from_the_file(tmp_path: Path) -> None:
    """What the operator mounts."""
    path = tmp_path / "kvpool.yaml"
    path.write_text("tiers: {cpu: {size: 2Gi}}\ntenant: red\n")
    config = load({}, {"KVPOOL_CONFIG_FILE": str(path)})
    assert (config.tiers.cpu.size, config.tenant) == (2 << 30, "red")


def test_from_the_command_line() -> None:
    """What a person writes who starts vLLM by hand."""
    assert load({"kvpool": SMALLEST, "spec_name": "other"}, {}) == parse(SMALLEST, "test")
    assert load({"kvpool": SMALLEST}, {"KVPOOL_CONFIG_FILE": ""}) == parse(SMALLEST, "test")


def test_two_sources_are_refused(tmp_path: Path) -> None:
    """Which one wins would be a guess."""
    with pytest.raises(ConfigError, match=r"two configurations: KVPOOL_CONFIG_FILE=/a .*remove one"):
        load({"kvpool": SMALLEST}, {"KVPOOL_CONFIG_FILE": "/a"})


def test_no_source_says_how_to_give_one() -> None:
    """With an example that works."""
    with pytest.raises(ConfigError, match="no configuration: set KVPOOL_CONFIG_FILE"):
        load({}, {})


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """Named with the reason."""
    with pytest.raises(ConfigError, match=r"KVPOOL_CONFIG_FILE=.*missing cannot be read: No such file or directory"):
        load({}, {"KVPOOL_CONFIG_FILE": str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load({}, {"KVPOOL_CONFIG_FILE": str(tmp_path)})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """Named with the reason."""
    path = tmp_path / "closed"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load({}, {"KVPOOL_CONFIG_FILE": str(path)})


@pytest.mark.parametrize(
    "content", [b"tiers: {cpu", b"\xff\xfe\x00", b"tenant: 2024-02-31", b"? [a]\n: b", b"a: !!int x"]
)
def test_a_file_that_is_not_yaml(tmp_path: Path, content: bytes) -> None:
    """Including what PyYAML reports as something else than a YAML error."""
    path = tmp_path / "kvpool.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"kvpool\.yaml is not YAML: "):
        load({}, {"KVPOOL_CONFIG_FILE": str(path)})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["version", "tiers", "cpu", "size", "remote", "type", "host", "timeouts", "pool", "x"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_content_is_a_configuration_or_a_config_error(content: object) -> None:
    """Never another exception."""
    try:
        assert isinstance(parse(content, "test"), ConnectorConfig)
    except ConfigError as error:
        assert str(error).startswith("test: ")
