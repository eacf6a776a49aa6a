"""The configuration files of containerd, CNI, kubelet and kube-proxy, as text.  Pure.

Lines that a reader would not expect are there for machines without CAP_SYS_RESOURCE, with cgroup v1, without
an image registry or without a network; each says which.
"""

from __future__ import annotations

import json
from pathlib import Path

from e2e.cluster.local.layout import BRIDGE, CNI_NETWORK, DNS_IP, NODE, NODE_IP, POD_CIDR, Layout

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


def cni(layout: Layout) -> str:
    """The Pod network: a bridge, addresses from a file, and hostPort."""
    addresses = {
        "type": "host-local",
        "dataDir": str(layout.run / "ipam"),
        "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": POD_CIDR, "gateway": NODE_IP}]],
    }
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": True,
        "ipam": addresses,
    }
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return json.dumps({"cniVersion": "0.4.0", "name": CNI_NETWORK, "plugins": plugins}, indent=2) + "\n"


def containerd(layout: Layout, cni_folder: Path) -> str:
    """containerd with its own folders and socket."""
    return f"""\
version = 2
root = "{layout.run}/containerd/root"
state = "{layout.run}/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/kvpool/pause:dev"
  netns_mounts_under_state_dir = true      # so that `down` finds and unmounts them
  restrict_oom_score_adj = true            # without CAP_SYS_RESOURCE a lower score cannot be set
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_folder}"
    conf_dir = "{layout.conf}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def kubelet(layout: Layout) -> str:
    """The kubelet: it listens on the Pod bridge and on 127.0.0.1 only."""
    return f"""\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {NODE_IP}
healthzBindAddress: 127.0.0.1
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: "{layout.pki}/ca.crt"}}}}
authorization: {{mode: Webhook}}
tlsCertFile: "{layout.pki}/kubelet.crt"
tlsPrivateKeyFile: "{layout.pki}/kubelet.key"
containerRuntimeEndpoint: "unix://{layout.containerd_socket}"
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
enforceNodeAllocatable: []
oomScoreAdj: 0                       # without CAP_SYS_RESOURCE a lower score cannot be set
clusterDNS: ["{DNS_IP}"]
clusterDomain: cluster.local
resolvConf: "{layout.conf}/resolv.conf"
podLogsDir: "{layout.run}/pod-logs"
volumePluginDir: "{layout.run}/volume-plugins"
imageGCHighThresholdPercent: 100     # images that were removed cannot be pulled again
evictionHard: {{memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}}
"""


def proxy(layout: Layout) -> str:
    """kube-proxy: the connection tracking limits, which it may not write everywhere, are left as they are."""
    return f"""\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {{kubeconfig: "{layout.conf}/proxy.kubeconfig"}}
hostnameOverride: "{NODE}"
clusterCIDR: "{POD_CIDR}"
bindAddress: "{NODE_IP}"
nodePortAddresses: ["{POD_CIDR}"]
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
oomScoreAdj: 0
conntrack: {{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"""
