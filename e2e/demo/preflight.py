"""``python3.11 -m e2e.demo.preflight cluster|engine``: what is missing on this machine, before a
demo spends minutes.

Called by the Makefile before anything is installed, so the standard library is all that it needs.
Standard output is the state of the caches, in the words of `e2e.footprint`, for the demo's last
line; people read standard error. The exit code is 1 when something is missing; then all of it is
told, a sentence each.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2e import footprint
from e2e.cluster.local import addresses, debian, images, machine, probe
from e2e.cluster.local.layout import Layout
from e2e.cluster.local.node import running
from e2e.cluster.local.processes import Processes
from e2e.cluster.progress import ClusterError
from e2e.cluster.provider import decide
from e2e.cluster.settings import Settings, read_settings
from e2e.demo import CLUSTER
from e2e.demo.needs import (
    DISK_GB,
    RUN_GB,
    Disk,
    Facts,
    NodeFacts,
    StageName,
    problems,
    wrong_platform,
)
from testkit.host import chosen_dtype, cpu_flags

GIB = 1 << 30
STAGES: Mapping[str, StageName] = {"cluster": "cluster", "engine": "engine"}
PROGRAMS: Mapping[str, Sequence[str]] = {
    "kind": ("kind", "docker", "kubectl"),
    "current": ("kubectl",),
}
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_IMAGE_LAYERS = ("store", "python", "serving")


def main(arguments: Sequence[str]) -> int:
    """Entry point: 0 when the demo can begin, 1 when something is missing, 2 for wrong
    arguments."""
    stage = STAGES.get(arguments[0]) if len(arguments) == 1 else None
    if stage is None:
        print("python3.11 -m e2e.demo.preflight cluster|engine", file=sys.stderr)
        return 2
    wrong = wrong_platform(platform.system(), platform.machine())
    if wrong:  # the rest is asked of Linux
        print(f"demo: {wrong}", file=sys.stderr)
        return 1
    facts = gather(stage)
    found = problems(facts)
    for sentence in found:
        print(f"demo: {sentence}", file=sys.stderr)
    if found:
        print(
            "demo: nothing was started or installed: mend this, then run the same command again",
            file=sys.stderr,
        )
        return 1
    caches = footprint.phrase(facts.missing)
    print(f"demo: this machine has what is needed; caches are {caches}", file=sys.stderr)
    print(caches)
    return 0


def gather(stage: StageName) -> Facts:
    """Look at this machine.  Nothing is changed but our own PATH, which gets the sbin folders, as
    `up` does it."""
    machine.extend_environment()
    provider, unusable = "local", None
    settings: Settings | None = None
    try:
        settings = read_settings(CLUSTER)
        unusable = unusable_folder(settings.cache)
        if stage == "cluster":
            provider, _ = decide(os.environ)
    except ClusterError as error:
        provider = str(error)
    node_settings = settings if stage == "cluster" and provider == "local" else None
    cache_folder = footprint.kvpool_cache()
    missing = [name for name in footprint.missing(cache_folder) if node_settings or name != footprint.KUBERNETES]
    fetched = packages(cache_folder, node=node_settings is not None)
    total, free = memory()
    return Facts(
        stage=stage,
        provider=provider,
        avx2=platform.machine() != "x86_64" or "avx2" in cpu_flags(),
        dtype=wrong_dtype(),
        can_install=can_install(cache_folder),
        memory_gib=total,
        free_gib=free,
        missing=missing,
        disks=disks(stage, missing, node_settings),
        unusable=unusable,
        fetched=fetched,
        has_apt=all(shutil.which(program) for program in ("apt-get", "apt-cache", "dpkg-deb")),
        unknown=unknown(fetched),
        programs=[name for name in PROGRAMS.get(provider, ()) if not shutil.which(name)],
        node=node_facts(node_settings) if node_settings else None,
    )


def node_facts(settings: Settings) -> NodeFacts:
    """What matters for a node.  Trials of the kernel need root; without it, that is what is
    told."""
    root = os.geteuid() == 0
    ours = running(_processes(settings.root))
    folders = [note.parent for note in sorted(settings.state.glob("*/cluster.json"))]
    others = [folder.name for folder in folders if folder != settings.root and running(_processes(folder))]
    return NodeFacts(
        root=root,
        lacking=probe.lacking(existing(settings.state)) if root else [],
        state=str(settings.state),
        ports=machine.taken_ports(ours),
        other=others[0] if others else None,
        overlaps=addresses.overlaps(),
        runs=bool(ours),
    )


def _processes(root: Path) -> Processes:
    layout = Layout(root)
    return Processes(layout.run, layout.log)


def memory() -> tuple[float, float]:
    """This machine's memory and what is free of it, in GiB; a container's limit bounds the
    latter."""
    rows = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    kib = {row[0]: int(row[1]) for row in rows}
    free = kib["MemAvailable:"] * 1024
    for limit in _LIMITS:
        text = limit.read_text().strip() if limit.exists() else "max"
        free = min(free, int(text) if text.isdecimal() else free)
    return kib["MemTotal:"] * 1024 / GIB, free / GIB


def disks(stage: StageName, missing: Sequence[str], node: Settings | None) -> list[Disk]:
    """What a run fills, by file system: caches may lie on several."""
    cache_folder, _, uv, _, builds = (place.folder for place in footprint.places())
    fills = [(node.state if node else cache_folder, RUN_GB[stage])]
    fills += [(cache_folder, DISK_GB[name]) for name in missing if name != footprint.KUBERNETES]
    if footprint.VLLM in missing and device(uv) != device(cache_folder):  # then its files are not linked but copied
        fills.append((uv, DISK_GB[footprint.VLLM]))
    if footprint.KUBERNETES in missing:
        fills.append((builds, DISK_GB[footprint.KUBERNETES]))
    together: dict[int, Disk] = {}
    for folder, size in fills:
        before = together.get(device(folder))
        free = shutil.disk_usage(existing(folder)).free / footprint.GB
        together[device(folder)] = Disk(
            before.folder if before else str(folder),
            free,
            size + (before.needed if before else 0.0),
        )
    return list(together.values())


def device(folder: Path) -> int:
    """The file system that a folder lies on, or will lie on."""
    return existing(folder).stat().st_dev


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def unusable_folder(folder: Path) -> str | None:
    """Why programs can't be kept there and run from there."""
    place = existing(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} cannot be written"
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        return f"{place} is mounted noexec, and programs are run from it"
    return None


def wrong_dtype() -> str | None:
    """Return what is wrong with KVPOOL_DTYPE."""
    try:
        chosen_dtype()
    except ValueError as error:
        return str(error)
    return None


def can_install(cache_folder: Path) -> bool:
    """True when tools/setup.sh finds uv, or can get it with this Python's ensurepip (Debian packs
    that by itself)."""
    kept = any(cache_folder.glob("uv-*/bin/uv"))
    return kept or bool(shutil.which("uv")) or importlib.util.find_spec("ensurepip") is not None


def packages(cache_folder: Path, *, node: bool) -> list[str]:
    """Debian packages that a run would fetch, as tools/setup.sh and the cluster do; what is cached
    is not fetched."""

    def cached(pattern: str) -> bool:
        return any(cache_folder.glob(pattern))

    names: list[str] = []
    if not shutil.which("redis-server") and not cached("redis/usr/bin/redis-server"):
        names.append("redis-server")
    if not cached("mooncake-*"):
        names.append("libibverbs1")
    if node:
        names += machine.missing_packages()
        if not shutil.which("etcd") and not cached("etcd-*"):
            names.append("etcd-server")
        for kind in _IMAGE_LAYERS:
            names += () if cached(f"layer-{kind}-*") else images.BASES[kind]
    return list(dict.fromkeys(names))


def unknown(fetched: Sequence[str]) -> list[str]:
    """Those packages that the lists do not have; none where apt does not answer, which is then told
    when it is used."""
    try:
        return debian.unknown(fetched)
    except ClusterError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
