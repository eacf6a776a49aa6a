"""Image archives: what is in them, and that the same content gives the same digest."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.local.oci import Image, Run, write_archive, write_layer


def tree(root: Path, *, mode: int = 0o644, when: int = 1_000_000_000) -> Path:
    """A small root file system."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_text("#!/bin/sh\n")
    (root / "usr/bin/tool").chmod(mode | 0o111)
    (root / "etc").mkdir()
    (root / "etc/conf").write_text("a=1\n")
    (root / "etc/conf").chmod(mode)
    (root / "bin").symlink_to("usr/bin")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "var/log").mkdir(parents=True)
    (root / "var/log/noise").write_text(str(when))
    for path in root.rglob("*"):
        os.utime(path, (when, when), follow_symlinks=False)
    return root


def archive_of(image: Image) -> tarfile.TarFile:
    output = io.BytesIO()
    write_archive(image, output)
    output.seek(0)
    return tarfile.open(fileobj=output)


def read_json(archive: tarfile.TarFile, name: str) -> Any:
    return json.loads(content(archive, name))


def content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    base = write_layer(tree(tmp_path / "base"), tmp_path / "base.tar")
    (tmp_path / "code/opt").mkdir(parents=True)
    code = write_layer(tmp_path / "code", tmp_path / "code.tar")
    return Image("localhost/a/b:dev", [base, code], Run(["/bin/tool"], ["x"], user="10001", env={"HOME": "/home/a"}))


def test_every_blob_is_named_by_its_digest_and_all_referred_ones_are_there(image: Image) -> None:
    with archive_of(image) as archive:
        blobs = [name for name in archive.getnames() if name.startswith("blobs/sha256/")]
        for name in blobs:
            assert hashlib.sha256(content(archive, name)).hexdigest() == name.rsplit("/", 1)[1]
        (entry,) = read_json(archive, "index.json")["manifests"]
        assert entry["digest"] == image.digest
        assert entry["annotations"]["io.containerd.image.name"] == "localhost/a/b:dev"
        manifest = read_json(archive, "blobs/" + entry["digest"].replace(":", "/"))
        referred = [entry, manifest["config"], *manifest["layers"]]
        assert sorted("blobs/" + each["digest"].replace(":", "/") for each in referred) == sorted(blobs)
        assert all(archive.getmember("blobs/" + e["digest"].replace(":", "/")).size == e["size"] for e in referred)
        config = read_json(archive, "blobs/" + manifest["config"]["digest"].replace(":", "/"))
        assert config["rootfs"]["diff_ids"] == [each["digest"] for each in manifest["layers"]]
        assert config["config"]["User"] == "10001"
        assert "HOME=/home/a" in config["config"]["Env"]


def test_files_belong_to_root_keep_links_and_leave_noise_out(tmp_path: Path) -> None:
    layer = write_layer(tree(tmp_path / "root", mode=0o4600), tmp_path / "layer.tar")
    with tarfile.open(layer.path) as tar:
        members = {member.name: member for member in tar}
    assert all((each.uid, each.gid, each.uname, each.mtime) == (0, 0, "", 0) for each in members.values())
    assert members["bin"].linkname == "usr/bin"
    assert members["tmp"].mode == 0o1777
    assert (members["usr/bin/tool"].mode, members["etc/conf"].mode) == (0o755, 0o644)
    assert "var/log/noise" not in members


def test_the_same_content_gives_the_same_digest_whenever_and_with_whatever_umask(tmp_path: Path) -> None:
    first = write_layer(tree(tmp_path / "a"), tmp_path / "a.tar")
    second = write_layer(tree(tmp_path / "b", mode=0o600, when=1_700_000_000), tmp_path / "b.tar")
    assert first.digest == second.digest
    (tmp_path / "b/etc/conf").write_text("a=2\n")
    assert write_layer(tmp_path / "b", tmp_path / "c.tar").digest != first.digest


def test_a_layer_that_two_images_parts_share_is_written_once(tmp_path: Path) -> None:
    layer = write_layer(tree(tmp_path / "root"), tmp_path / "layer.tar")
    with archive_of(Image("localhost/a:dev", [layer, layer], Run())) as archive:
        assert len(archive.getnames()) == len(set(archive.getnames()))
