# The kernel takes text, and what stands before a path is not a folder that it lies in.
# ruff: noqa: PTH101, PTH102, PTH109, PTH112, PTH114, PTH116, PTH120
"""Lets a program run beside the user's files: Linux namespaces and overlay mounts.

The tree of mounts is built anew in a scratch folder. Over each mount that can be written lies an
overlay file system: what is written goes to the scratch folder, and every reader sees it. Where no
overlay can lie the mount is read-only. The program then has the new tree for its root.

Must not import torch: it is entered before anything else is loaded.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import multiprocessing.util
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)

# <sched.h>, <sys/mount.h>
NEW_MOUNTS, NEW_USERS, NEW_PROCESSES = 0x20000, 0x10000000, 0x20000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE = 1, 1 << 5, 1 << 12, 1 << 14
_SLAVE, _DETACH = 1 << 19, 1 << 1

_KEPT_FLAGS = {
    os.ST_NOSUID: 1 << 1,
    os.ST_NODEV: 1 << 2,
    os.ST_NOEXEC: 1 << 3,
    os.ST_NOATIME: 1 << 10,
    os.ST_NODIRATIME: 1 << 11,
    os.ST_RELATIME: 1 << 21,
}
"""What a mount must keep when it is made read-only: its flag in statvfs, and in mount(2)."""

SYSTEM = ("/dev", "/proc", "/run", "/sys")
"""Devices, the kernel's own files and the sockets of services: nobody keeps results there."""

_SOCKETS = "ipc"
"""Folder in the scratch folder that every root shows, for the sockets of multiprocessing."""

_LONGEST = 64
"""Characters of its path: with what multiprocessing adds, a socket's may have 107."""


def enter_namespaces(flags: int) -> None:
    """Move this process into new namespaces; in one of users it keeps its user and group.

    Raises:
        OSError: the kernel does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    _checked(_LIBC.unshare(flags), "unshare")
    if flags & NEW_USERS:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    _checked(_LIBC.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), target)


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    point: str
    writable: bool


def mounts() -> list[Mount]:
    """Return the mounts that this process sees, each after the one that it lies in."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        _, _, _, _, escaped, options, *_ = left.split()
        own, whole = options.split(b","), right.split()[-1].split(b",")
        # Blanks and the like are written in octal.
        point = os.fsdecode(escaped.decode("unicode_escape").encode("latin-1"))
        found[point] = Mount(point, b"rw" in own and b"rw" in whole)
    return sorted(found.values(), key=lambda mount: mount.point.split("/"))


def is_under(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies in it; both are absolute."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class Layers:
    """Roots in which everything can be written, and the user's files stay as they are.

    Attributes:
        label: how reports call this protection.
        scratch: the folder that the writes go to.
        written: by folder, where the files are that were written to it in the first root.
        refused: folders whose own files cannot be written, because no overlay lies over them.
    """

    label = "kernel"

    def __init__(
        self,
        scratch: str,
        *,
        through: Iterable[str] = (),
        essential: Iterable[str] = (),
        own_processes: bool,
        own_users: bool,
    ) -> None:
        """Prepare, in namespaces of this process's own.

        Args:
            scratch: an empty folder.
            through: what stays the user's own and is really written.
            essential: folders that are of no use if they cannot be written.
            own_processes: whether this process is in a process namespace of its own.
            own_users: and whether in one of users.

        Raises:
            OSError: the kernel does not allow it.
        """
        self.scratch = os.path.realpath(scratch)
        self.refused: set[str] = set()
        self.written: dict[str, str] = {}
        self._through = sorted({os.path.realpath(path) for path in through})
        self._essential = [os.path.realpath(path) for path in essential]
        self._own_processes, self._own_users = own_processes, own_users
        self._mounts = [
            mount
            for mount in mounts()
            if not any(is_under(mount.point, folder) for folder in SYSTEM)
        ]
        self._host = os.open("/", os.O_PATH | os.O_DIRECTORY)
        self._current = ""
        _mount("", "/", flags=_RECURSIVE | _SLAVE)
        if not self._takes_layers():
            # In memory, then: by default up to a half of it.
            _mount("nnaudit", self.scratch, "tmpfs", options="mode=700")
        os.mkdir(f"{self.scratch}/{_SOCKETS}")

    def _real(self, path: str) -> str:
        """Return the way to ``path`` as the host sees it, from within any root."""
        return f"/proc/self/fd/{self._host}{path}"

    def _takes_layers(self) -> bool:
        """Whether the scratch folder's file system can hold what an overlay writes."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as trial:
            lower, upper, merged = (f"{trial}/{name}" for name in ("lower", "upper", "merged"))
            for folder in (lower, upper, merged):
                os.mkdir(folder)
            try:
                self._overlay(lower, upper, merged)
            except OSError:
                return False
            _detach(merged)
        return True

    def new_root(self) -> str:
        """Build another root over the user's files as they are; return the way to it.

        Raises:
            OSError: the kernel does not allow it, or an essential folder cannot be written.
        """
        place = tempfile.mkdtemp(dir=self._real(self.scratch))
        root = f"{place}/root"
        os.mkdir(root)
        for mount in self._mounts:
            if os.path.lexists(root + mount.point):
                self._cover(mount, place)
        self._add_system(root)
        for path in self._through:
            if not any(is_under(path, folder) for folder in SYSTEM):
                _mount(self._real(path), root + path, flags=_BIND | _RECURSIVE)
        with suppress(OSError):  # where a folder of the system hides it, there is nothing to hide
            self._hide_scratch(root + self.scratch)
        for path in self._essential:
            if path in self.refused:
                raise OSError(errno.EROFS, "no overlay can lie over it", path)
        return root

    def _hide_scratch(self, target: str) -> None:
        """Show an empty folder in its place, with what processes of several roots meet in."""
        _mount("nnaudit", target, "tmpfs", options="size=4k,mode=700")
        os.mkdir(f"{target}/{_SOCKETS}")
        _mount(self._real(f"{self.scratch}/{_SOCKETS}"), f"{target}/{_SOCKETS}", flags=_BIND)
        _make_read_only(target)

    def _cover(self, mount: Mount, place: str) -> None:
        """Put the mount into the root at ``place``, under an overlay where it can be written."""
        point, target = mount.point, f"{place}/root{mount.point}"
        if mount.writable and os.path.isdir(self._real(point)):
            try:
                self._lay(point, place)
            except OSError:
                pass
            else:
                return
        _mount(self._real(point), target, flags=_BIND | _RECURSIVE)
        if not mount.writable:
            return
        _make_read_only(target)
        self.refused.add(point)
        if os.path.isdir(target):
            self._lay_inside(point, place)

    def _lay_inside(self, folder: str, place: str) -> None:
        """Lay overlays over what is in ``folder``, since none can lie over it as a whole.

        The kernel does not let an unprivileged process see below a mount, hence a folder that has
        one in it.
        """
        points = [mount.point for mount in self._mounts]
        with suppress(OSError), os.scandir(self._real(folder)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{folder.rstrip('/')}/{entry.name}"
                if not entry.is_dir(follow_symlinks=False) or path in (*points, *SYSTEM):
                    continue
                try:
                    self._lay(path, place)
                except OSError:
                    self.refused.add(path)
                    if any(is_under(point, path) for point in points):
                        self._lay_inside(path, place)

    def _lay(self, point: str, place: str) -> None:
        """Lay an overlay over ``point`` in the root at ``place``."""
        upper = tempfile.mkdtemp(dir=place)
        try:
            self._overlay(self._real(point), upper, f"{place}/root{point}")
        except OSError:
            shutil.rmtree(upper)
            raise
        if not self._current:
            self.written[point] = f"{upper}/files"

    def _overlay(self, lower: str, upper: str, target: str) -> None:
        """Mount at ``target`` the folder ``lower``, with what is written to it in ``upper``."""
        folders = (lower, f"{upper}/files", f"{upper}/work")
        for folder in folders[1:]:
            os.mkdir(folder)
        _copy_attributes(lower, folders[1])
        with ExitStack() as stack:
            numbers = []  # for a path may hold the commas and colons that part the options
            for folder in folders:
                numbers.append(os.open(folder, os.O_PATH | os.O_DIRECTORY))
                stack.callback(os.close, numbers[-1])
            options = "lowerdir={},upperdir={},workdir={}".format(
                *(f"/proc/self/fd/{number}" for number in numbers)
            )
            kind = "userxattr" if self._own_users else "redirect_dir=on,metacopy=off"
            _mount("nnaudit", target, "overlay", options=f"{options},{kind}")

    def _add_system(self, root: str) -> None:
        for folder in SYSTEM:
            if os.path.isdir(root + folder) and not os.path.islink(root + folder):
                if folder == "/proc" and self._own_processes:
                    _mount("proc", root + folder, "proc")
                else:
                    _mount(self._real(folder), root + folder, flags=_BIND | _RECURSIVE)
        if os.path.isdir(f"{root}/dev/shm"):
            size = os.statvfs(self._real("/dev/shm"))
            options = f"mode=1777,size={size.f_blocks * size.f_frsize}"
            _mount("nnaudit", f"{root}/dev/shm", "tmpfs", options=options)

    def enter(self, root: str, folder: str) -> None:
        """Take ``root`` for the root of this process, and work in ``folder`` there."""
        os.chroot(root)
        os.chdir(folder)
        if not self._current:
            _meet_in(f"{self.scratch}/{_SOCKETS}")
            if self._own_users:
                os.rename, os.replace = _moving_folders(os.rename), _moving_folders(os.replace)
        self._current = root

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Begin with the user's files as they are, for the time of a ``with``."""
        before, here = self._current, os.getcwd()
        root = self.new_root()
        self.enter(root, here)
        try:
            yield
        finally:
            self.enter(before, here)
            _detach(root)
            shutil.rmtree(os.path.dirname(root), ignore_errors=True)

    def refuses(self, path: str) -> bool:
        """Whether ``path`` could be written, if an overlay lay over its folder."""
        folder = os.path.dirname(path)
        if not os.access(self._real(folder), os.W_OK):
            return False
        while folder not in self.refused and folder not in self.written and folder != "/":
            folder = os.path.dirname(folder)
        return folder in self.refused


def _meet_in(folder: str) -> None:
    """Have multiprocessing make its sockets in ``folder``.

    A DataLoader's workers that persist were started in another root than the one in which their
    loader is read later; what they send comes by a socket, which has a path.
    """
    if not os.path.isdir(folder) or len(folder) > _LONGEST:
        return
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = before


def _moving_folders(rename: Callable[..., None]) -> Callable[..., None]:
    """Return ``rename`` such that it moves a folder of the user's, too.

    An overlay that an unprivileged process mounted cannot: it says that the folder is on another
    device, as ``mv`` and ``shutil.move`` expect of a system, and many programs do not.
    """

    @functools.wraps(rename)
    def move(src: Any, dst: Any, **folders: Any) -> None:
        try:
            rename(src, dst, **folders)
        except OSError as error:
            if error.errno != errno.EXDEV or folders or os.path.islink(src):
                raise
            near = os.path.dirname(os.fsdecode(dst).rstrip("/")) or "."
            with tempfile.TemporaryDirectory(dir=near) as beside:
                copy = f"{beside}/copy"
                shutil.copytree(src, copy, symlinks=True)
                rename(copy, dst)
            shutil.rmtree(src)

    return move


def _detach(target: str) -> None:
    _checked(_LIBC.umount2(os.fsencode(target), _DETACH), target)


def _make_read_only(target: str) -> None:
    flags = os.statvfs(target).f_flag
    kept = sum(mounted for stated, mounted in _KEPT_FLAGS.items() if flags & stated)
    _mount("", target, flags=_REMOUNT | _BIND | _READ_ONLY | kept)


def _copy_attributes(source: str, target: str) -> None:
    """Give the folder ``target`` the mode, owner and times of ``source``."""
    found = os.stat(source)
    with suppress(OSError):  # an owner that this namespace does not know
        os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
