"""A file system that can be made to hang: FUSE, over a folder of this machine, with its server stopped by a signal.

The kernel then does to a reader or writer what it does for NFS or a disk that dies: the system call does not return. The
server is a process of its own and speaks the kernel's protocol (include/uapi/linux/fuse.h) itself, since no library for
it is needed for so few calls. Mounting takes root; where that is missing, tests are skipped (`CAN_MOUNT`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_DETACH = 2
_MAX_WRITE = 1 << 20
_HEADER, _ANSWER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_INIT = struct.Struct("<IIIIHHIIHHI7I")
_ATTR, _ENTRY, _OPEN = struct.Struct("<6Q10I"), struct.Struct("<4Q2I"), struct.Struct("<QII")
_STATFS = struct.Struct("<5Q4I6I")
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_SET_SIZE = 1 << 3
_SILENT = {2, 42}  # FORGET, BATCH_FORGET: no answer is wanted
_libc = ctypes.CDLL(None, use_errno=True)


class HangingDisk:
    """Mounted while it is entered; ``path`` is an empty folder on it."""

    def __init__(self) -> None:
        self._behind = tempfile.TemporaryDirectory(prefix="kvpool-disk-")
        self._mount = tempfile.TemporaryDirectory(prefix="kvpool-mount-")
        self.path = Path(self._mount.name)
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-S", __file__, self._behind.name, self._mount.name]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        with self._server.stdout as said:
            assert said.readline() == "mounted\n", "the file system cannot be mounted"
        return self

    def hang(self) -> None:
        """Let no call return from now on. Calls that are on their way hang, too."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._server.pid, os.WSTOPPED)

    def sent_bytes(self) -> int:
        """Return how many bytes the file system has given its readers, about."""
        assert self._server is not None
        lines = Path(f"/proc/{self._server.pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))

    def go_on(self) -> None:
        """Serve again, first what was asked for meanwhile."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.kill()  # the kernel ends the calls that hang: "Transport endpoint is not connected"
        self._server.wait()
        _libc.umount2(self._mount.name.encode(), _DETACH)
        self._mount.cleanup()
        self._behind.cleanup()


def _can_mount() -> bool:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        return False
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return tried.returncode == 0


def _mount(folder: str) -> int:
    """Mount, and return the descriptor on which the kernel asks."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if _libc.mount(b"kvpool-test", folder.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return device


class _Server:
    """Answers the kernel. Nodes are paths below a folder."""

    def __init__(self, folder: str) -> None:
        self._paths = {1: folder}
        self._nodes = {folder: 1}
        self._calls: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup, 3: self._getattr, 4: self._setattr, 9: self._mkdir, 10: self._unlink, 12: self._rename,
            14: self._open, 15: self._read, 16: self._write, 17: self._statfs, 18: self._release, 20: self._nothing,
            25: self._nothing, 26: self._init, 35: self._create, 43: self._allocate, 45: self._rename2,
        }  # fmt: skip

    def serve(self, device: int) -> None:
        """Answer until the file system is gone."""
        while True:
            request = os.read(device, _MAX_WRITE + 4096)
            _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
            if opcode in _SILENT:
                continue
            body, error = b"", 0
            try:
                call = self._calls.get(opcode)
                if call is None:
                    raise OSError(errno.ENOSYS, "")
                body = call(node, request[_HEADER.size :])
            except OSError as fault:
                error = -(fault.errno or errno.EIO)
            with contextlib.suppress(FileNotFoundError):  # whoever asked was interrupted
                os.write(device, _ANSWER.pack(_ANSWER.size + len(body), error, unique) + body)

    def _nothing(self, node: int, body: bytes) -> bytes:
        return b""

    def _init(self, node: int, body: bytes) -> bytes:
        flags = _BIG_WRITES | _MAX_PAGES
        return _INIT.pack(7, 31, 1 << 20, flags, 16, 12, _MAX_WRITE, 1, _MAX_WRITE // 4096, 0, 0, *[0] * 7)

    def _path(self, node: int, name: bytes) -> str:
        return os.path.join(self._paths[node], name.split(b"\0")[0].decode())  # noqa: PTH118 - nodes are strings

    def _attr(self, path: str) -> bytes:
        at = os.stat(path)  # noqa: PTH116 - nodes are strings
        return _ATTR.pack(
            at.st_ino, at.st_size, at.st_blocks, int(at.st_atime), int(at.st_mtime), int(at.st_ctime), 0, 0, 0,
            at.st_mode, at.st_nlink, at.st_uid, at.st_gid, 0, 4096, 0,
        )  # fmt: skip

    def _entry(self, path: str) -> bytes:
        attr = self._attr(path)
        node = self._nodes.setdefault(path, max(self._paths) + 1)
        self._paths[node] = path
        return _ENTRY.pack(node, 0, 0, 0, 0, 0) + attr

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._path(node, body))

    def _getattr(self, node: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attr(self._paths[node])

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & _SET_SIZE:
            os.truncate(self._paths[node], size)
        return self._getattr(node, body)

    def _mkdir(self, node: int, body: bytes) -> bytes:
        path = self._path(node, body[8:])
        os.mkdir(path)  # noqa: PTH102 - nodes are strings
        return self._entry(path)

    def _unlink(self, node: int, body: bytes) -> bytes:
        path = self._path(node, body)
        os.unlink(path)  # noqa: PTH108 - nodes are strings
        self._nodes.pop(path, None)
        return b""

    def _rename(self, node: int, body: bytes) -> bytes:
        (to,) = struct.unpack_from("<Q", body)
        return self._moved(node, to, body[8:])

    def _rename2(self, node: int, body: bytes) -> bytes:
        to, _, _ = struct.unpack_from("<QII", body)
        return self._moved(node, to, body[16:])

    def _moved(self, node: int, to: int, names: bytes) -> bytes:
        before, after, _ = names.split(b"\0")
        source, target = self._path(node, before), self._path(to, after)
        os.replace(source, target)  # noqa: PTH105 - nodes are strings
        moved = self._nodes.pop(source, None)
        if moved is not None:
            self._nodes[target] = moved
            self._paths[moved] = target
        return b""

    def _opened(self, path: str, flags: int, mode: int = 0) -> bytes:
        return _OPEN.pack(os.open(path, flags & ~os.O_DIRECT, mode), 0, 0)

    def _open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        return self._opened(self._paths[node], flags)

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", body)
        path = self._path(node, body[16:])
        opened = self._opened(path, flags | os.O_CREAT, mode)
        return self._entry(path) + opened

    def _read(self, node: int, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(file, size, offset)

    def _write(self, node: int, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(file, body[40 : 40 + size], offset), 0)

    def _allocate(self, node: int, body: bytes) -> bytes:
        file, offset, length = struct.unpack_from("<QQQ", body)
        os.posix_fallocate(file, offset, length)
        return b""

    def _release(self, node: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def _statfs(self, node: int, body: bytes) -> bytes:
        of = os.statvfs(self._paths[node])
        return _STATFS.pack(
            of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree, of.f_bsize, of.f_namemax, of.f_frsize, 0,
            *[0] * 6,
        )  # fmt: skip


if __name__ == "__main__":
    asked_on = _mount(sys.argv[2])
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # ENODEV: unmounted
        _Server(sys.argv[1]).serve(asked_on)
else:
    CAN_MOUNT = _can_mount()
