"""The operator's own settings, as the chart writes them into a file. Everything has a default.

Unlike the resource, an unknown key is an error: the file is written by the chart of the same version.
"""

from __future__ import annotations

import enum
import ipaddress
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, model_validator
from pydantic.alias_generators import to_camel


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Images(_Section):
    """Images for pools that name none."""

    redis: str = Field("docker.io/library/redis:8.2", min_length=1)
    valkey: str = Field("docker.io/valkey/valkey:9.0", min_length=1)
    mooncake: str = Field("docker.io/kvcacheai/mooncake:0.3.13", min_length=1)
    etcd: str = Field("registry.k8s.io/etcd:3.5.21-0", min_length=1)
    lmcache: str = Field("docker.io/lmcache/vllm-openai:v0.5.6", min_length=1)
    engine: str = Field("kvpool/serving:0.1.0", min_length=1)
    payload: str = Field("kvpool/payload:0.1.0", min_length=1)
    """The connector, for users' Pods whose image has none."""


class StoreDefaults(_Section):
    """Applied to every store that the operator runs."""

    pod_template: dict[str, Any] = {}
    """Merged into the store's Pod template; its container is called ``store``."""


class EngineDefaults(_Section):
    """Applied to every engine, before what the pool says."""

    args: tuple[str, ...] = ()
    """vLLM arguments between kvpool's and the pool's."""
    env: tuple[dict[str, Any], ...] = ()
    """Environment variables as in a Pod."""
    pod_template: dict[str, Any] = {}
    """Merged into the engine's Pod template; its container is called ``engine``. For clusters where the weights or vLLM itself
    come from a volume."""
    model_paths: dict[str, str] = {}
    """Model id to the directory inside the container where that model already is."""


class Webhook(_Section):
    """The server that the API server asks about Pods."""

    enabled: bool = False
    configuration: str = Field("kvpool-operator", min_length=1)
    """The MutatingWebhookConfiguration whose caBundle is kept; the chart makes it."""
    namespace: str = Field("kvpool-system", min_length=1)
    """Where the Secret with the certificates is."""
    secret: str = Field("kvpool-operator-webhook", min_length=1)
    names: tuple[str, ...] = ()
    """Host names and addresses that the certificate is for: those by which the API server calls."""
    ca_seconds: int = Field(5 * 365 * 86400, ge=4)
    certificate_seconds: int = Field(90 * 86400, ge=2)
    overlap_seconds: float = Field(60, ge=0)
    """How long a new CA is announced before a certificate of it is served."""
    check_seconds: float = Field(30, ge=0.1)
    """How often the certificates and the caBundle are looked at."""


class Election(_Section):
    """Which of several replicas leads. A leader that cannot renew its Lease for ``renew_seconds`` stops writing, before another
    may take over after ``lease_seconds``."""

    lease: str = Field("kvpool-operator", min_length=1)
    """Name of the Lease, in the operator's namespace."""
    lease_seconds: int = Field(12, ge=2)
    """How long a follower waits after it saw the last renewal."""
    renew_seconds: float = Field(8, gt=0)
    """How long a leader writes after it asked for the last renewal that came about."""
    pause_seconds: float = Field(2, gt=0)
    """Between two renewals."""
    look_seconds: float = Field(1, gt=0)
    """Between two looks of a follower."""
    request_seconds: float = Field(3, gt=0)
    """For one request about the Lease."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.pause_seconds < self.renew_seconds < self.lease_seconds:
            raise ValueError("pauseSeconds, renewSeconds and leaseSeconds have to be in this order, the longest last")
        return self


class PodTemplates(enum.StrEnum):
    """What pools may set in the Pods of their engines."""

    RESTRICTED = "Restricted"
    FULL = "Full"


class Probes(_Section):
    """Which addresses the operator asks whether they are a store. Whoever may make a pool chooses them, and the operator may
    reach what that person may not."""

    refused_networks: tuple[IPvAnyNetwork, ...] = tuple(
        ipaddress.ip_network(network)
        for network in (
            "0.0.0.0/8",
            "100.100.100.200/32",
            "127.0.0.0/8",
            "168.63.129.16/32",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "::/96",
            "64:ff9b::/96",
            "2002::/16",
            "fd00:ec2::254/128",
            "fe80::/10",
            "ff00::/8",
        )
    )
    """Loopback, link-local, multicast and unspecified addresses, the metadata services of clouds that are elsewhere (Alibaba
    Cloud's, Azure's, EC2's over IPv6), and IPv6 that leads to any IPv4 address."""
    refuse_api_server: bool = True
    """Not the API server's address either."""
    at_a_time: int = Field(8, ge=1, le=256)
    deadline_seconds: float = Field(2, gt=0, le=30)
    """For one server, its name's lookup included."""


class Settings(_Section):
    """The whole file."""

    images: Images = Images()
    store_defaults: StoreDefaults = StoreDefaults()
    engine_defaults: EngineDefaults = EngineDefaults()
    webhook: Webhook = Webhook()
    election: Election = Election()
    probes: Probes = Probes()
    pod_templates: PodTemplates = PodTemplates.RESTRICTED
    """Full: whatever a Pod may have. Whoever may make pools may then run any Pod in their namespaces, as the operator."""
    cluster_domain: str = "cluster.local"
    namespace: str = "kvpool-system"
    """The operator's own: its Lease is there, and NetworkPolicies let it reach the administration of stores."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all namespaces."""
    resync_seconds: float = Field(300, ge=1)
    """How often a pool is looked at although nothing was seen to change. Reads only."""
    probe_seconds: float = Field(10, ge=0.1)
    """How often an external store is probed, and Pods of an engine that is not ready are looked at."""
    workers: int = Field(4, ge=1, le=64)
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
