"""The Pod bridge and what of it is left when a node ends.

The bridge is made here, not by the CNI plugin, so that its address can be the node's address before any Pod runs.
`remove` takes away what carries our names: the bridge, our two FORWARD rules, kube-proxy's chains (by its own
clean-up) and the chains of our CNI network.  `net.ipv4.ip_forward` stays 1, since others may rely on it by then.
"""

from __future__ import annotations

import re
import shlex
import socket
import struct
from pathlib import Path

from e2e.cluster.command import run, succeeds
from e2e.cluster.local.layout import BRIDGE, CNI_NETWORK, NODE_IP, POD_CIDR, SERVICE_CIDR, put
from e2e.cluster.progress import ClusterError

_QUERY_ID = 0x4B56
_POD_CHAIN = re.compile(r"CNI-(DN-)?[0-9a-f]+")
_SETTINGS = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/bridge/bridge-nf-call-iptables")


def exists() -> bool:
    """True when the bridge is there."""
    return Path(f"/sys/class/net/{BRIDGE}").exists()


def make() -> None:
    """The bridge with the node's address, routed Services and forwarding; again does nothing."""
    if not exists():
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    run(["ip", "addr", "replace", f"{NODE_IP}/{POD_CIDR.split('/')[1]}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    # Gives this machine a source address for Services, even without a default route.
    run(["ip", "route", "replace", SERVICE_CIDR, "dev", BRIDGE])
    if not Path(_SETTINGS[1]).exists():
        succeeds(["modprobe", "br_netfilter"])
    for setting in _SETTINGS:
        _turn_on(Path(setting))
    for direction in ("-i", "-o"):  # a Docker daemon sets the policy of FORWARD to DROP
        rule = ["FORWARD", direction, BRIDGE, "-j", "ACCEPT"]
        if not succeeds(["iptables", "-C", *rule]):
            run(["iptables", "-I", *rule])


def _turn_on(setting: Path) -> None:
    try:
        if setting.read_text().strip() != "1":
            setting.write_text("1")
    except OSError as error:
        raise ClusterError(f"the kernel setting {setting} cannot be set to 1, which Services need: {error}") from error


def resolves(name: str, server: str) -> bool:
    """True when the name server knows an IPv4 address of this name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack("!6H", _QUERY_ID, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect((server, 53))
            probe.send(question)
            number, flags, _, answers, _, _ = struct.unpack("!6H", probe.recv(512)[:12])
        except (OSError, struct.error):
            return False
    return bool(number == _QUERY_ID and flags & 0x000F == 0 and answers > 0)


def write_resolv_conf(path: Path) -> None:
    """For Pods with `dnsPolicy: Default`: no name server outside the cluster is asked."""
    put(path, "nameserver 127.0.0.1\n")


def remove(proxy: Path) -> None:
    """Take away all that `make`, kube-proxy and the CNI plugins left."""
    succeeds([proxy, "--cleanup"])
    for chain in ("INPUT", "OUTPUT"):
        succeeds(["iptables", "-D", chain, "-j", "KUBE-FIREWALL"])
    succeeds(["iptables", "-F", "KUBE-FIREWALL"]) and succeeds(["iptables", "-X", "KUBE-FIREWALL"])
    for direction in ("-i", "-o"):
        succeeds(["iptables", "-D", "FORWARD", direction, BRIDGE, "-j", "ACCEPT"])
    _remove_pod_chains()
    if exists():
        run(["ip", "link", "delete", BRIDGE])
    for result in Path("/var/lib/cni/results").glob(f"{CNI_NETWORK}-*"):  # the plugins' notes of Pods that are gone
        result.unlink(missing_ok=True)


def _remove_pod_chains() -> None:
    """Rules and chains of Pods that ended without the CNI plugin, or whose plugin was ended half way."""
    try:
        saved = run(["iptables-save", "-t", "nat"])
    except ClusterError:
        return
    rules, chains = pod_chains(saved)
    for rule in rules:
        succeeds(["iptables", "-t", "nat", "-D", *rule])
    for chain in chains:
        succeeds(["iptables", "-t", "nat", "-F", chain]) and succeeds(["iptables", "-t", "nat", "-X", chain])


def pod_chains(saved: str) -> tuple[list[list[str]], list[str]]:
    """From `iptables-save -t nat`: the rules to delete (as arguments of `-D`) and the chains to remove.

    A rule is ours when its comment names our network.  A chain is ours when such a rule is in it or leads to it, or
    when it is empty and nothing leads to it: a plugin that was ended between the two has left it so, and nobody's
    traffic can pass it.
    """
    rules = [shlex.split(line)[1:] for line in saved.splitlines() if line.startswith("-A ")]
    ours = [rule for rule in rules if any(f'name: "{CNI_NETWORK}"' in word for word in rule)]
    named = {word for rule in ours for word in rule if _POD_CHAIN.fullmatch(word)}
    declared = {line[1:].split()[0] for line in saved.splitlines() if line.startswith(":")}
    used = {word for rule in rules for word in rule}
    idle = {chain for chain in declared - used if _POD_CHAIN.fullmatch(chain)}
    return ours, sorted(named | idle)
