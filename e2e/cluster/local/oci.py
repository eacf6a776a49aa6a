"""OCI image archives, written without a container tool: what `ctr images import` and `podman load` read.

A layer is a tar of a folder in which every file belongs to root and is dated 1970, so the same content gives
the same digest wherever and whenever it is written.  Layers are not compressed: writing and importing them is
then bound by the disk alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

SKIPPED = (
    "dev/",
    "proc/",
    "sys/",
    "usr/share/doc/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/man/",
    "var/cache/",
    "var/lib/",
    "var/log/",
)
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MEDIA = "application/vnd.oci.image."


@dataclass(frozen=True)
class Layer:
    """A tar file and its digest."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True)
class Run:
    """What a container of an image runs."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    user: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> dict[str, object]:
        """The `config` part of an image configuration."""
        variables = {"PATH": DEFAULT_PATH, **self.env}
        whole: dict[str, object] = {
            "Env": [f"{key}={value}" for key, value in variables.items()],
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "User": self.user,
        }
        return {key: value for key, value in whole.items() if value}


@dataclass(frozen=True)
class Image:
    """A named list of layers, lowest first."""

    reference: str
    layers: Sequence[Layer]
    run: Run

    def config(self) -> bytes:
        """The image configuration."""
        content = {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": self.run.config(),
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in self.layers]},
            "history": [],
        }
        return json.dumps(content).encode()

    def manifest(self) -> bytes:
        """The image manifest; its digest is the image's."""
        layers = [
            {"mediaType": f"{_MEDIA}layer.v1.tar", "digest": each.digest, "size": each.size} for each in self.layers
        ]
        content = {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}manifest.v1+json",
            "config": _descriptor(self.config(), "config.v1+json"),
            "layers": layers,
        }
        return json.dumps(content).encode()

    @property
    def digest(self) -> str:
        """The digest by which a container runtime lists the image."""
        return _digest(self.manifest())


def write_layer(folder: Path, output: Path) -> Layer:
    """Write a folder as a layer."""
    with tarfile.open(output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.iterdir()):  # tarfile sorts the folders below
            tar.add(path, arcname=path.name, filter=_uniform)
    return read_layer(output)


def read_layer(path: Path) -> Layer:
    """A layer that was written before."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Layer(path, f"sha256:{digest}", path.stat().st_size)


def _uniform(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what no container needs, and all that differs between two machines with the same files."""
    if info.name.startswith(SKIPPED) or not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
        return None
    info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
    if info.isdir():
        info.mode = 0o755 | (info.mode & 0o1002 and 0o1777)
    else:  # no set-user-id: nothing here runs as root
        info.mode = 0o755 if info.mode & 0o111 else 0o644
    return info


def write_archive(image: Image, output: IO[bytes]) -> None:
    """Write the image as an OCI archive."""
    manifest, config = image.manifest(), image.config()
    described = {
        **_descriptor(manifest, "manifest.v1+json"),
        "annotations": {
            "io.containerd.image.name": image.reference,
            "org.opencontainers.image.ref.name": image.reference,
        },
    }
    with tarfile.open(fileobj=output, mode="w") as tar:
        _put(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _put(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [described]}).encode())
        for blob in (manifest, config):
            _put(tar, _blob_path(_digest(blob)), blob)
        for layer in {each.digest: each for each in image.layers}.values():
            info = tarfile.TarInfo(_blob_path(layer.digest))
            info.size = layer.size
            with layer.path.open("rb") as content:
                tar.addfile(info, content)


def _put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _descriptor(content: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": _MEDIA + kind, "digest": _digest(content), "size": len(content)}
