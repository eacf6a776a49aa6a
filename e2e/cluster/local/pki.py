"""The cluster's keys and certificates, made once with openssl (about a second) and kept with the cluster's state.

They hold for every mode: names and addresses of both are in the API server's certificate.  They are written into
a temporary folder that is renamed at the end, so that an interrupted run leaves none or all.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.command import run
from e2e.cluster.local.layout import API_SERVICE_IP, NODE, NODE_IP
from e2e.cluster.progress import ClusterError

DAYS = "3650"
_API_NAMES = (
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,"
    f"DNS:localhost,IP:127.0.0.1,IP:{NODE_IP},IP:{API_SERVICE_IP}"
)


@dataclass(frozen=True)
class Certificate:
    """One certificate: its file name, who signs it, whom it names."""

    name: str
    signer: str
    subject: str
    alternatives: str = ""


CERTIFICATES = (
    Certificate("front-proxy-client", "front-proxy-ca", "/CN=front-proxy-client"),
    Certificate("apiserver", "ca", "/CN=kube-apiserver", _API_NAMES),
    Certificate("kubelet-client", "ca", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
    Certificate("controller-manager", "ca", "/CN=system:kube-controller-manager"),
    Certificate("scheduler", "ca", "/CN=system:kube-scheduler"),
    Certificate("proxy", "ca", "/CN=system:kube-proxy"),
    Certificate("kubelet", "ca", f"/O=system:nodes/CN=system:node:{NODE}", f"DNS:{NODE},IP:{NODE_IP}"),
    Certificate("admin", "ca", "/O=system:masters/CN=admin"),
)


def ensure(folder: Path) -> bool:
    """Make all keys and certificates unless they are there; True when they were made."""
    if folder.is_dir():
        return False
    if not shutil.which("openssl"):
        raise ClusterError("openssl is missing: it makes the cluster's keys (Debian package openssl)")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    with ThreadPoolExecutor(4) as pool:
        service_accounts = pool.submit(_service_account_key, unfinished)
        list(pool.map(lambda name: _authority(unfinished, name), ("ca", "front-proxy-ca")))
        list(pool.map(lambda certificate: _certificate(unfinished, certificate), CERTIFICATES))
        service_accounts.result()
    unfinished.rename(folder)
    return True


def _key(folder: Path, name: str) -> Path:
    path = folder / f"{name}.key"
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])
    path.chmod(0o600)
    return path


def _authority(folder: Path, name: str) -> None:
    extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    subject = ["-subj", f"/CN={name}", "-days", DAYS]
    run(
        [
            "openssl",
            "req",
            "-x509",
            "-new",
            "-key",
            _key(folder, name),
            *subject,
            "-out",
            folder / f"{name}.crt",
            *extensions,
        ]
    )


def _certificate(folder: Path, certificate: Certificate) -> None:
    base = folder / certificate.name
    key = _key(folder, certificate.name)
    request = run(["openssl", "req", "-new", "-key", key, "-subj", certificate.subject])
    extensions = base.with_suffix(".ext")
    lines = ["keyUsage=critical,digitalSignature", "extendedKeyUsage=clientAuth,serverAuth"]
    lines += [f"subjectAltName={certificate.alternatives}"] if certificate.alternatives else []
    extensions.write_text("\n".join(lines) + "\n")
    # A random serial number: a serial file would be written by several of these at once.
    serial = "0x" + run(["openssl", "rand", "-hex", "15"]).strip()
    signer = ["-CA", f"{folder}/{certificate.signer}.crt", "-CAkey", f"{folder}/{certificate.signer}.key"]
    issue = ["-set_serial", serial, "-days", DAYS, "-extfile", str(extensions), "-out", str(base.with_suffix(".crt"))]
    run(["openssl", "x509", "-req", *signer, *issue], stdin=request)
    extensions.unlink()


def _service_account_key(folder: Path) -> None:
    """The key that signs ServiceAccount tokens; RSA, which every client understands."""
    run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"])
    (folder / "sa.key").chmod(0o600)
    run(["openssl", "rsa", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub"])
