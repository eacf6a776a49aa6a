"""Debian packages as files: fetched and unpacked without root and without running their install scripts.

`unpack` is enough for programs that need only their files (etcd, redis-server, python3).  `root_file_system`
makes a folder that a container can have as `/`.  Package lists are read with apt; where the machine has none,
private lists are fetched into the cache, which needs no root either.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.command import failure, run
from e2e.cluster.progress import ClusterError, Progress

# What packages depend on only for their install scripts, which are not run.
_FOR_SCRIPTS = re.compile(
    r"adduser|cdebconf|debconf(-2\.0)?|dpkg|init-system-helpers|install-info|lsb-base|passwd|perl.*|libperl.*|lib.*-perl"
    r"|usrmerge|usr-is-merged|sysvinit-utils|tar|libdebian-installer4|libnewt.*|libslang2|libtextwrap1|libdb5\.3|libgdbm.*"
    r"|libsemanage.*|libsepol.*|libpam.*|libaudit.*|libcap-ng0|libfdisk1|mailcap|mime-support|media-types|libelogind0"
)
_CLOSURE = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]


class Apt:
    """The package lists to use: the machine's, or private ones in the cache."""

    def __init__(self, cache: Path, progress: Progress) -> None:
        for program in ("apt-get", "dpkg-deb"):
            if not shutil.which(program):
                raise ClusterError(f"{program} is missing: this needs Debian or a system made from it")
        self._private = cache / "apt"
        self._progress = progress

    @functools.cached_property
    def options(self) -> list[str]:
        """Options that choose the lists; private ones are fetched when the machine's are empty."""
        if has_lists():
            return []
        private = [
            "-o",
            f"Dir::State={self._private}/state",
            "-o",
            f"Dir::Cache={self._private}/cache",
            "-o",
            "Dir::State::status=/var/lib/dpkg/status",
        ]
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self._private / folder).mkdir(parents=True, exist_ok=True)
        if not has_lists(private):
            with self._progress.during("this machine has no package lists: fetching them into the cache"):
                run(["apt-get", *private, "-qq", "update"])
        return private

    def closure(self, packages: Sequence[str]) -> list[str]:
        """These packages and all that their files need, sorted."""
        listed = run(["apt-cache", *self.options, "depends", "--recurse", *_CLOSURE, *packages])
        listed_names = {line.strip() for line in listed.splitlines() if re.match(r"[a-z0-9]", line)}
        wanted = sorted(name for name in listed_names if name in packages or not _FOR_SCRIPTS.fullmatch(name))
        found = candidates(self.options, wanted)
        missing = set(packages) - set(found)
        if missing:
            names = ", ".join(sorted(missing))
            raise ClusterError(f"no Debian package named {names} can be had: run `apt-get update`, or use Debian 12")
        return found

    def unpack(self, packages: Sequence[str], place: Path) -> None:
        """Unpack exactly these packages into `place`."""
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="kvpool-debs-") as folder:
            # As root, apt would drop to a user of its own, who cannot write here.
            sandbox = ["-o", "APT::Sandbox::User=root"]
            run(["apt-get", *self.options, "-qq", *sandbox, "download", *packages], cwd=Path(folder))
            for archive in sorted(Path(folder).glob("*.deb")):
                _extract(archive, place)


def has_lists(options: Sequence[str] = ()) -> bool:
    """True when package lists were fetched (a package that is installed has a candidate even without any)."""
    targets = run(["apt-get", *options, "indextargets", "--format", "$(FILENAME)", "Created-By: Packages"])
    return any(Path(line).exists() for line in targets.splitlines())


def unknown(packages: Sequence[str]) -> list[str]:
    """Packages that this machine's lists do not have; none where it has no lists or no apt yet."""
    if not packages or not shutil.which("apt-cache") or not has_lists():
        return []
    known = candidates([], packages)
    return [name for name in packages if name not in known]


def candidates(options: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those names that are real packages which can be fetched (a virtual package has no candidate)."""
    text = run(["apt-cache", *options, "policy", *names], env={"LC_ALL": "C"})
    return re.findall(r"^([a-z0-9][^\s:]*)(?::\w+)?:\n  Installed: .*\n  Candidate: (?!\(none\))", text, re.MULTILINE)


def _extract(archive: Path, place: Path) -> None:
    """Unpack one package; links such as /bin -> usr/bin stay as they are."""
    files = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE)
    tar = subprocess.run(
        ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", str(place)],
        stdin=files.stdout,
        capture_output=True,
        text=True,
        check=False,
    )
    if files.stdout:
        files.stdout.close()
    if files.wait() != 0 or tar.returncode != 0:
        raise ClusterError(failure(["tar", "-x", archive.name], tar.returncode, tar.stderr))


def root_file_system(apt: Apt, packages: Sequence[str], place: Path) -> None:
    """A folder for a container's `/`: merged /usr, a shell, /tmp, and the user 10001 beside root."""
    for folder in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "tmp", "proc", "sys", "dev", "etc", "run", "var/tmp"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (place / name).symlink_to(f"usr/{name}")
    for name in ("tmp", "var/tmp"):
        (place / name).chmod(0o1777)
    apt.unpack(apt.closure(packages), place)
    shell = place / "usr/bin/sh"
    shell.unlink(missing_ok=True)
    shell.symlink_to("dash")
    # Install scripts would have made these.
    (place / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnonroot:x:10001:10001::/tmp:/bin/sh\n")
    (place / "etc/group").write_text("root:x:0:\nnonroot:x:10001:\n")
    (place / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
