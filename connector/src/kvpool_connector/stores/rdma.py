"""Which RDMA devices this container has."""

from __future__ import annotations

from pathlib import Path

from kvpool_connector.config import ConfigError

_DEVICES = Path("/sys/class/infiniband")


def require_devices(asked_by: str, devices_field: str, wanted: str, otherwise: str) -> list[str]:
    """The devices that are there, at least one.

    Args:
        asked_by: what of the configuration needs RDMA.
        devices_field: the field that names devices.
        wanted: the devices that it names, separated by commas.
        otherwise: what to do without RDMA.

    Raises:
        ConfigError: none is there, or a wanted one is not.
    """
    present = sorted(path.name for path in _DEVICES.glob("*"))
    if not present:
        raise ConfigError(
            f"{asked_by}, but this container has no RDMA device ({_DEVICES} is empty): {otherwise}, or give the Pod "
            "RDMA devices"
        )
    for device in filter(None, map(str.strip, wanted.split(","))):
        if device not in present:
            raise ConfigError(f"{devices_field}: there is no RDMA device {device!r}, only {', '.join(present)}")
    return present
