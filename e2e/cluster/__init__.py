"""Kubernetes clusters for development and tests: `python3 -m e2e.cluster up|down|status|env|build|images|volumes`.

From Python:

    provider = choose(name="e2e")                      # local, kind or the current context
    access = provider.up("node")                       # or "control": no Pods, no root
    images = provider.load_images(["store"], sources)  # {"store": "localhost/kvpool/store:dev"}
    subprocess.run([access.kubectl, "get", "nodes"], env={**os.environ, **access.environment()})
    provider.down(clean=True)

Only the standard library is used, so that this runs before any environment was installed.
"""

from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.provider import IMAGE_NAMES, Access, ImageSources, Mode, Provider, choose, image_reference
from e2e.cluster.volumes import HostFolder, host_folder_manifests, pod_volumes, render

__all__ = [
    "IMAGE_NAMES",
    "Access",
    "ClusterError",
    "HostFolder",
    "ImageSources",
    "Mode",
    "Progress",
    "Provider",
    "choose",
    "host_folder_manifests",
    "image_reference",
    "pod_volumes",
    "render",
]
