"""A password in LMCache's configuration reaches the store and no text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from connector.tests.unit.lmcache import PASSWORD, QUOTED, file, refused, text
from kvpool_connector.config import ConfigError, find


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
