"""LMCache's ``remote_url`` as kvpool's ``remote`` section.

A password in it goes into a file in memory (:mod:`~kvpool_connector.config.lmcache.secret`); no message repeats the URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from kvpool_connector.config.errors import ConfigError
from kvpool_connector.config.lmcache.secret import password_file
from kvpool_connector.config.lmcache.values import as_bool, as_int

_REFUSED = {
    "rediss": "TLS is not offered: use redis:// inside the cluster's network, or end TLS in front of the store",
    "unix": "a socket file is not offered: let the server listen on a port and use redis://host:port",
    "redis-cluster": "Redis Cluster is not offered: use redis-sentinel:// for fail-over, or one large server by redis://",
}
_OFFERED = "redis, valkey, resp, redis-sentinel, lm, mooncakestore, infinistore"
_MASTER_NAME = "redismaster"
"""LMCache's name of the primary where REDIS_SERVICE_NAME is not set (redis_connector.py)."""
_MOONCAKE_SEGMENT = 3_355_443_200
"""Bytes; LMCache's default (mooncakestore_connector.py)."""


class Extra:
    """``extra_config``, and which of its keys were of use."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = dict(content)
        self.used: set[str] = set()

    def get(self, *names: str) -> Any:
        """The first of these that is there, or None."""
        for name in names:
            if self._content.get(name) is not None:
                self.used.add(name)
                return self._content[name]
        return None

    @property
    def unused(self) -> list[str]:
        """Keys that nobody asked for."""
        return sorted(self._content.keys() - self.used)


def remote_section(key: str, url: object, extra: Extra, environ: Mapping[str, str]) -> dict[str, Any]:
    """The section for a URL.

    Args:
        key: what the user calls ``remote_url``, for messages.

    Raises:
        ConfigError: no such store here, or an address that is none; never repeats the URL.
    """
    text = str(url).strip()
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "lm", text  # as in guides that name only the server
    if scheme in _REFUSED:
        raise ConfigError(f"{key}: {scheme}:// cannot be used: {_REFUSED[scheme]}")
    builders: dict[str, Callable[[], dict[str, Any]]] = {
        "redis": lambda: _redis(key, "redis", rest, extra, environ),
        "resp": lambda: _redis(key, "redis", rest, extra, environ, needs_port=True),
        "valkey": lambda: _redis(key, "valkey", rest, extra, environ, needs_port=True),
        "redis-sentinel": lambda: _sentinel(key, rest, environ),
        "lm": lambda: {"type": "lmcache"} | _address(key, _split(key, rest)),
        "mooncakestore": lambda: _mooncake(key, rest, extra),
        "infinistore": lambda: _infinistore(key, rest, extra),
    }
    if scheme not in builders:
        raise ConfigError(f"{key}: no store of the kind {scheme}:// here: use one of {_OFFERED}")
    return builders[scheme]()


def _split(key: str, rest: str) -> SplitResult:
    try:
        parts = urlsplit(f"//{rest}")
        if parts.port == 0 or "@" in f"{parts.path}{parts.query}{parts.fragment}":  # the rest of a password
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{key}: the address cannot be read: write scheme://host:port; in a password, write /, ?, #, : and @ as %2F, "
            "%3F, %23, %3A and %40"
        ) from None
    return parts


def _address(key: str, parts: SplitResult, port: int | None = None) -> dict[str, Any]:
    if not parts.hostname:
        raise ConfigError(f"{key}: no host: write scheme://host:port")
    if (parts.port or port) is None:
        raise ConfigError(f"{key}: no port: write scheme://host:port")
    return {"host": parts.hostname, "port": parts.port or port}


def _credentials(key: str, username: str | None, password: str | None) -> dict[str, Any]:
    if username and not password:
        raise ConfigError(f"{key}: a user without a password: write scheme://user:password@host:port, or no user")
    if not password:
        return {}
    return {"password_file": password_file(password)} | ({"username": username} if username else {})


def _redis(
    key: str, kind: str, rest: str, extra: Extra, environ: Mapping[str, str], *, needs_port: bool = False
) -> dict[str, Any]:
    """One server. As redis-py reads such a URL: the path or ``?db=`` is the database."""
    parts = _split(key, rest)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if kind == "valkey":
        username, password = extra.get("valkey_username") or username, extra.get("valkey_password") or password
        if as_bool("extra_config.tls_enable", extra.get("tls_enable") or False):
            raise ConfigError(f"extra_config.tls_enable: {_REFUSED['rediss']}")
        if extra.get("valkey_mode") == "cluster":
            raise ConfigError(f"extra_config.valkey_mode: {_REFUSED['redis-cluster']}; or set it to standalone")
    elif needs_port:  # resp://
        username = extra.get("username") or username or environ.get("LMCACHE_RESP_USERNAME", "")
        password = extra.get("password") or password or environ.get("LMCACHE_RESP_PASSWORD", "")
    database = extra.get("valkey_database") if kind == "valkey" else None
    if database is None:
        database = query.pop("db", None) or parts.path.strip("/") or 0
    if query:
        raise ConfigError(f"{key}: ?{min(query)}= is not offered: remove it")
    section = {"type": kind} | _address(key, parts, None if needs_port else 6379)
    section |= _credentials(key, str(username), str(password))
    section["database"] = as_int(f"{key}: the database", database, 0, 1_000_000)
    if as_bool("extra_config.valkey_enable_ttl", extra.get("valkey_enable_ttl") or False):
        ttl = extra.get("valkey_ttl_sec")
        section["ttl_s"] = as_int("extra_config.valkey_ttl_sec", 86_400 if ttl is None else ttl, 1, 1 << 31)
    return section


def _sentinel(key: str, rest: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Several sentinels; user and password are the primary's, as in LMCache."""
    authority, _, addresses = rest.rpartition("@")
    username, _, password = authority.partition(":")
    endpoints = [
        _address(key, _split(key, each.strip().removeprefix("redis-sentinel://"))) for each in addresses.split(",")
    ]
    master = environ.get("REDIS_SERVICE_NAME") or _MASTER_NAME
    return (
        {"type": "redis"}
        | _credentials(key, unquote(username), unquote(password))
        | {"sentinel": {"master_name": master, "endpoints": endpoints}}
    )


def _mooncake(key: str, rest: str, extra: Extra) -> dict[str, Any]:
    """``extra_config`` holds Mooncake's own keys, with or without the prefix ``mooncake_``."""

    def setting(name: str) -> Any:
        return extra.get(f"mooncake_{name}", name)

    master = setting("master_server_address")
    if master is None:
        address = _address(key, _split(key, rest))
        master = f"{address['host']}:{address['port']}"
    protocol = str(setting("protocol") or "tcp").lower()
    if protocol not in ("tcp", "rdma"):
        raise ConfigError(f"extra_config.protocol: {protocol!r} is not offered: use tcp or rdma")
    segment = setting("global_segment_size")
    section: dict[str, Any] = {
        "type": "mooncake", "master": str(master), "protocol": protocol,
        "segment_size": as_int("extra_config.global_segment_size", _MOONCAKE_SEGMENT if segment is None else segment, 0, 1 << 46),
    }  # fmt: skip
    for ours, theirs in (
        ("metadata_server", "metadata_server"),
        ("devices", "device_name"),
        ("local_host", "local_hostname"),
    ):
        value = setting(theirs)
        if value:
            section[ours] = str(value)
    return section


def _infinistore(key: str, rest: str, extra: Extra) -> dict[str, Any]:
    parts = _split(key, rest)
    link = str(extra.get("infinistore_link_type") or "LINK_ETHERNET").upper()
    links = {"LINK_ETHERNET": "Ethernet", "LINK_IB": "IB"}
    if link not in links:
        raise ConfigError(f"extra_config.infinistore_link_type: {link!r} must be one of {', '.join(links)}")
    device = parse_qs(parts.query).get("device", ["mlx5_0"])[0]
    return {"type": "infinistore", "experimental": True, "device": device, "link_type": links[link]} | _address(
        key, parts
    )
