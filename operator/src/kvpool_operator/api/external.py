"""``spec.backend.external``: a store that somebody else runs. Which fields a kind of store takes is in ``backend``."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import Field

from kvpool_operator.api.object_names import DataKey, ObjectName
from kvpool_operator.api.sections import ADDRESS, HOST_PATTERN
from kvpool_operator.api.types import ApiModel, list_field


class PasswordRef(ApiModel):
    """A Secret in the pool's namespace."""

    name: ObjectName = Field(description="The Secret's name.")
    password_key: DataKey = Field("password", description="Key that holds the password.")
    username_key: DataKey | None = Field(
        None, description="Key that holds the ACL user's name; absent: the default user."
    )


class Auth(ApiModel):
    """How to authenticate to an external store."""

    secret_ref: PasswordRef = Field(description="Where the password is. It is mounted as a file, never copied.")


class SentinelEndpoint(ApiModel):
    """Where one sentinel listens."""

    host: str = Field(min_length=1, max_length=253, pattern=HOST_PATTERN, description="Host name or address.")
    port: int = Field(26379, ge=1, le=65535, description="TCP port.")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


PRIMARY_PATTERN = r"^[A-Za-z0-9.:-]+(/[0-9]{1,3})?$"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(text: str) -> Network | None:
    """Return the network that a text means; None for the name of a host."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


class ExternalSentinel(ApiModel):
    """Sentinels that know which Redis or Valkey is the primary."""

    master_name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="The name after 'sentinel monitor' in sentinel.conf.",
    )
    endpoints: tuple[SentinelEndpoint, ...] = Field(
        min_length=1,
        max_length=16,
        description="Sentinels to ask, in this order.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    auth: Auth | None = Field(None, description="The sentinels' own password; absent: they ask for none.")
    primary_hosts: tuple[Annotated[str, Field(min_length=1, max_length=253, pattern=PRIMARY_PATTERN)], ...] = (
        list_field(
            kind="set",
            maximum=64,
            description="Hosts that a sentinel may name as the primary and that the operator sends the store's password to when "
            "it asks whether the store answers: names, addresses, networks such as 10.1.0.0/16. Absent: it sends none.",
        )
    )

    def trusts(self, host: str) -> bool:
        """Return whether a host that a sentinel named is one of ``primary_hosts``."""
        if host in self.primary_hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in map(_network, self.primary_hosts) if network is not None)


class External(ApiModel):
    """A store that somebody else runs."""

    host: str | None = Field(
        None, min_length=1, max_length=253, pattern=HOST_PATTERN, description="Host name or address, without port."
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="TCP port; absent: 6379, LMCacheServer 65432, InfiniStore 22345."
    )
    database: int | None = Field(None, ge=0, le=1_000_000, description="Redis, Valkey: number of the database.")
    auth: Auth | None = Field(None, description="Redis, Valkey; absent: the store asks for no password.")
    sentinel: ExternalSentinel | None = Field(None, description="Redis, Valkey: in place of host.")
    master: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        pattern=rf"^(etcd://)?{ADDRESS}(;{ADDRESS})*$",
        description="Mooncake: the master as host:port, or etcd://host:port;host:port to find the leader of several.",
    )
    metadata_server: str | None = Field(
        None,
        max_length=1024,
        pattern=r"^(P2PHANDSHAKE|(etcd|http|https)://[^ @]+)$",
        description="Mooncake: where clients find each other; absent: P2PHANDSHAKE, which needs no server.",
    )
