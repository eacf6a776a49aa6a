"""The command `python3 -m e2e.cluster`: up, down, status, env, build, images, volumes.

Exit status 0: done.  1: it cannot be done here; one sentence on standard error says why.  2: wrong arguments.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.provider import IMAGE_NAMES, STORE_IMAGE_NAMES, ImageSources, Provider, Row, choose
from e2e.cluster.settings import REPOSITORY
from e2e.cluster.volumes import HostFolder, host_folder_manifests, render


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        prog="python3 -m e2e.cluster", description="Kubernetes clusters for development and tests."
    )
    commands = whole.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--name", default="default", help="the cluster's name (default: default)")
        return command

    up = add("up", "Start the cluster, or what of it does not run.")
    up.add_argument("--mode", choices=("control", "node"), default="node", help="control: no Pods, no root")
    up.add_argument("--port", type=int, help="the API server's port; the next four are used too (default: free ones)")
    down = add("down", "End what `up` started, and nothing else.")
    down.add_argument("--clean", action="store_true", help="also delete the cluster's state (not the cache)")
    add("status", "Show what runs.")
    add("env", "Print shell lines that set KUBECONFIG and PATH, for eval.")
    add("build", "Build everything slow into the cache, and start nothing.")
    images = add("images", "Build our images from the working tree and load them into the cluster.")
    named = ", ".join((*IMAGE_NAMES, *STORE_IMAGE_NAMES))
    images.add_argument("images", nargs="*", metavar="IMAGE", help=f"of {named} (default: the first three)")
    images.add_argument("--operator", type=Path, default=REPOSITORY / "operator")
    images.add_argument("--connector", type=Path, default=REPOSITORY / "connector")
    images.add_argument("--requirements", type=Path, default=REPOSITORY / "requirements" / "operator.txt")
    volumes = add("volumes", "Print manifests that mount folders of the node read-only in Pods.")
    volumes.add_argument("folders", nargs="+", metavar="CLAIM=FOLDER")
    volumes.add_argument("--namespace", default="default")
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = parser().parse_args(argv)
    progress = Progress()
    try:
        act(choose(arguments.name, progress=progress, port=getattr(arguments, "port", None)), arguments)
    except ClusterError as error:
        print(f"e2e.cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("e2e.cluster: interrupted; the same command goes on from here, `down` ends what runs", file=sys.stderr)
        return 130
    return 0


def act(provider: Provider, arguments: argparse.Namespace) -> None:
    """Do what the command line says."""
    match arguments.command:
        case "up":
            provider.up(arguments.mode)
        case "down":
            provider.down(clean=arguments.clean)
        case "status":
            print(table(provider.status()))
        case "env":
            for name, value in provider.access().environment().items():
                print(f"export {name}={shlex.quote(value)}")
        case "build":
            provider.build()
        case "images":
            sources = ImageSources(arguments.operator, arguments.connector, arguments.requirements)
            loaded = provider.load_images(arguments.images or IMAGE_NAMES, sources)
            print("\n".join(loaded.values()))
        case "volumes":
            print(render(_volumes(provider, arguments)), end="")


def _volumes(provider: Provider, arguments: argparse.Namespace) -> list[dict[str, object]]:
    node = provider.access().node
    if not node:
        raise ClusterError("this cluster has no node that can mount folders of this machine")
    manifests: list[dict[str, object]] = []
    for word in arguments.folders:
        claim, _, path = word.partition("=")
        if not Path(path).is_dir():
            raise ClusterError(f"{word!r} is not CLAIM=FOLDER with a folder that exists")
        manifests += host_folder_manifests(HostFolder(claim, Path(path)), node=node, namespace=arguments.namespace)
    return manifests


def table(rows: Sequence[Row]) -> str:
    """Rows in columns."""
    what = max(len(row.what) for row in rows)
    state = max(len(row.state) for row in rows)
    return "\n".join(f"{row.what:<{what}}  {row.state:<{state}}  {row.detail}".rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
