"""What is taken out of the packet filter when a node ends."""

from __future__ import annotations

from e2e.cluster.local.layout import CNI_NETWORK
from e2e.cluster.local.network import pod_chains

OURS = "CNI-226a28f17e04d9df02966e3d"
OTHERS = "CNI-0123456789abcdef01234567"
HALF = "CNI-DN-aaaaaaaaaaaaaaaaaaaaa"


def saved(*rules: str) -> str:
    chains = "".join(f":{chain} - [0:0]\n" for chain in (OURS, OTHERS, HALF))
    return "*nat\n:POSTROUTING ACCEPT [0:0]\n" + chains + "".join(f"{rule}\n" for rule in rules) + "COMMIT\n"


def jump(chain: str, network: str) -> str:
    return rf'-A POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \"{network}\" id: \"x\"" -j {chain}'


def test_rules_and_chains_of_our_network_go_and_those_of_others_stay() -> None:
    rules, chains = pod_chains(saved(jump(OURS, CNI_NETWORK), jump(OTHERS, "podman"), f"-A {HALF} -j RETURN"))
    assert [rule[-1] for rule in rules] == [OURS]
    assert rules[0][0] == "POSTROUTING"
    assert chains == [OURS]


def test_an_empty_chain_that_nothing_leads_to_goes() -> None:
    """A plugin that is killed between deleting its rule and its chain leaves one."""
    assert pod_chains(saved(jump(OTHERS, "podman")))[1] == sorted([OURS, HALF])


def test_chains_of_another_kind_stay() -> None:
    assert pod_chains("*nat\n:KUBE-MARK-MASQ - [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\nCOMMIT\n") == ([], [])
