"""Manifests that mount folders of the node."""

import json
from pathlib import Path

from e2e.cluster.volumes import HostFolder, host_folder_manifests, pod_volumes, render, writable_volume


def test_a_folder_becomes_a_volume_and_the_claim_bound_to_it(tmp_path: Path) -> None:
    volume, claim = host_folder_manifests(HostFolder("venv", tmp_path), node="local", namespace="team")
    assert (volume["kind"], claim["kind"]) == ("PersistentVolume", "PersistentVolumeClaim")
    assert volume["metadata"]["name"] == claim["spec"]["volumeName"] == "team-venv"
    reference = volume["spec"]["claimRef"]
    assert (reference["namespace"], reference["name"]) == (claim["metadata"]["namespace"], claim["metadata"]["name"])
    assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"] == ""
    assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"] == ["ReadOnlyMany"]


def test_it_is_a_local_volume_of_that_node_and_cannot_be_written(tmp_path: Path) -> None:
    spec = host_folder_manifests(HostFolder("venv", tmp_path), node="local", namespace="team")[0]["spec"]
    assert "hostPath" not in spec
    assert spec["local"] == {"path": str(tmp_path)}
    assert spec["mountOptions"] == ["ro"]
    assert spec["persistentVolumeReclaimPolicy"] == "Retain"
    (term,) = spec["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["local"]}]


def test_two_namespaces_can_mount_the_same_folder(tmp_path: Path) -> None:
    folder = HostFolder("venv", tmp_path)
    names = {host_folder_manifests(folder, node="n", namespace=each)[0]["metadata"]["name"] for each in ("a", "b")}
    assert len(names) == 2


def test_a_link_is_followed_since_the_kubelet_would_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    volume = host_folder_manifests(HostFolder("x", tmp_path / "link"), node="n", namespace="a")[0]
    assert volume["spec"]["local"]["path"] == str(tmp_path / "real")


def test_pods_mount_read_only_so_that_no_owner_is_changed() -> None:
    volumes, mounts = pod_volumes([HostFolder("venv", Path("/x")), HostFolder("weights", Path("/y"), "/models")])
    assert all(each["persistentVolumeClaim"]["readOnly"] for each in volumes)
    assert [(each["name"], each["mountPath"], each["readOnly"]) for each in mounts] == [
        ("venv", "/venv", True),
        ("weights", "/models", True),
    ]


def test_a_folder_to_be_written_waits_for_a_claim_that_names_no_class(tmp_path: Path) -> None:
    folder = HostFolder("data-etcd-0", tmp_path)
    volume = writable_volume(folder, node="local", namespace="team", storage="4Gi")
    spec = volume["spec"]
    assert (spec["claimRef"]["namespace"], spec["claimRef"]["name"]) == ("team", "data-etcd-0")
    assert (spec["storageClassName"], spec["accessModes"], spec["capacity"]) == (
        "",
        ["ReadWriteOnce"],
        {"storage": "4Gi"},
    )
    assert "mountOptions" not in spec
    assert spec["local"] == {"path": str(tmp_path)}


def test_it_renders_as_one_document(tmp_path: Path) -> None:
    whole = json.loads(render(host_folder_manifests(HostFolder("a", tmp_path), node="n", namespace="b")))
    assert (whole["kind"], len(whole["items"])) == ("List", 2)
