# The kernel's own view is needed here, whatever pathlib's functions are replaced by meanwhile.
# ruff: noqa: PTH101, PTH102, PTH104, PTH105, PTH108, PTH115, PTH116, PTH118, PTH119, PTH120, PTH211
"""A second tree of folders, in which a program can work without changing the user's files.

For where the kernel will not lay an overlay (:mod:`nnaudit.state.namespaces`). Each path of the
machine leads to the same in the tree. Where the program works, folders are real ones and small
files copies, so that C libraries and child programs can write there, too, and read what was
written. All else is a link to its original: a file becomes a copy, and a folder a folder of links,
when Python is about to write there. What is no longer in the tree was removed.

Must not import torch, and must be imported before Python's own functions are replaced.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from os import (
    access,
    chmod,
    lstat,
    mkdir,
    readlink,
    rename,
    replace,
    scandir,
    symlink,
    unlink,
    utime,
)
from os import open as open_file
from os import stat as status

from nnaudit.state.namespaces import is_under

ENTRIES = 500
"""Names in folders below the working folder, say, up to which they are real from the start."""

SMALL = 1 << 20
"""Bytes of a file up to which it is copied at the start; a longer one is a link at first."""

COPIED = 16 << 20
"""Bytes that are copied at the start, all files together."""

WIDE = 200
"""Names in a folder above the working folder, say, up to which all are in the tree at once."""

_PARTIAL = stat.S_ISVTX
"""The mode by which a folder of the tree is known in which not all names are yet."""

_MARK = "/."
"""What stands before the target of a link to an original, and before no link's of a user's."""

_LINKS = 40
"""Links in a path up to which the kernel follows them."""

_UNUSED = ("__pycache__", "node_modules", ".nnaudit")
"""Folders in which a program has nothing to write, which may be full."""

_ENVIRONMENT = ("pyvenv.cfg", "conda-meta")
"""What lies in a folder of installed packages."""

_HERE, _EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


def original(place: str) -> str:
    """Return what the entry of a tree at ``place`` is a link to; nothing where it is none."""
    return _source(_link(place))


def _source(link: str) -> str:
    return link[len(_MARK) :] if link.startswith(f"{_MARK}/") else ""


def _link(place: str) -> str:
    try:
        return readlink(place)
    except (OSError, ValueError):
        return ""


class Mirror:
    """A tree in which every path of the machine leads to what it leads to outside.

    Attributes:
        root: the folder that stands for ``/`` in it.
    """

    def __init__(self, root: str, passes: Callable[[str], bool]) -> None:
        """``passes`` says of a path whether it stays the user's own, and is written for real.

        ``root`` may be a tree already, that of another process.
        """
        self.root = root
        self._passes = passes
        self._scratch = os.path.dirname(root)

    def grow(self, places: Iterable[str] = ()) -> None:
        """Make the tree: down to the folders ``places``, and some of what is below them."""
        mkdir(self.root)
        self._fill("/", self.root)
        begun = deque(dict.fromkeys(places))
        for place in begun:
            self._lead_to(place, tuple(begun))
        made, names, room = [*begun], ENTRIES, COPIED
        while begun:
            folder = begun.popleft()
            for name in _names(self.root + folder, ENTRIES):
                source = f"{folder.rstrip('/')}/{name}"
                entry = self.root + source
                if original(entry) != source or self._passes(source):
                    continue
                with suppress(OSError):
                    found = lstat(source)
                    if stat.S_ISDIR(found.st_mode):
                        below = _names(source, names + 1)
                        if len(below) <= names and _is_worked_in(source, below):
                            names -= len(below)
                            unlink(entry)
                            self._make_folder(source, entry)
                            begun.append(source)
                            made.append(source)
                    elif _is_small(found) and found.st_size <= room:
                        room -= found.st_size
                        self._copy(source, entry, found)
        for folder in made:
            with suppress(OSError):
                _copy_times(status(folder), self.root + folder)

    def _lead_to(self, place: str, places: tuple[str, ...]) -> None:
        """Make ``place`` a real folder of the tree, and those above; one of ``places`` is whole."""
        parts = place.strip("/").split("/")
        for depth in range(1, len(parts)):
            folder, name = "/" + "/".join(parts[:depth]), parts[depth]
            entry, inside = self.root + folder, any(is_under(folder, other) for other in places)
            if original(entry) == folder and not inside and len(_names(folder, WIDE + 1)) > WIDE:
                unlink(entry)
                mkdir(entry)
                chmod(entry, stat.S_IRWXU | _PARTIAL)
            if self._is_partial(folder) and not _exists(f"{entry}/{name}"):
                symlink(f"{_MARK}{folder}/{name}", f"{entry}/{name}")
        self.owned(place)

    def _is_partial(self, folder: str) -> bool:
        with suppress(OSError):
            return bool(lstat(self.root + folder).st_mode & _PARTIAL)
        return False

    def complete(self, folder: str) -> None:
        """Put all names of ``folder`` into the tree: it is listed, or will be changed."""
        if self._is_partial(folder):
            with self._alone():
                self._fill(folder, self.root + folder)
                chmod(self.root + folder, stat.S_IMODE(status(folder).st_mode) & ~_PARTIAL)

    @property
    def _spare(self) -> str:
        """Where this process makes what it then moves to its place."""
        return f"{self._scratch}/spare-{os.getpid()}"

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Put this tree aside, to make another by :meth:`grow`, for the time of a ``with``."""
        number = 0
        while _exists(aside := f"{self.root}.{number}"):
            number += 1
        rename(self.root, aside)
        try:
            yield
        finally:
            waste = tempfile.mkdtemp(dir=self._scratch)
            with suppress(FileNotFoundError):
                rename(self.root, f"{waste}/tree")
            rename(aside, self.root)
            shutil.rmtree(waste, ignore_errors=True)

    def outside(self, path: str) -> str:
        """Return the user's name for ``path``, which is absolute and may lie in the tree."""
        return (path[len(self.root) :] or "/") if is_under(path, self.root) else path

    # --- ways into the tree -----------------------------------------------------------------------

    def reading(self, path: str) -> str:
        """Return where to read ``path``, a name of the user's: in the tree if it differs there."""
        folder = ""
        for name in path.split("/")[1:]:
            here = f"{folder}/{name}"
            link = _link(self.root + here)
            if link == _MARK + here:
                return path
            if not link and not _exists(self.root + here):
                missed = self._is_partial(folder) or self._is_missed(folder or "/", here)
                return path if missed else self.root + path
            folder = here
        return self.root + path

    @staticmethod
    def _is_missed(folder: str, path: str) -> bool:
        """Whether ``path`` was not seen when ``folder`` was listed, although it is there.

        A folder may not tell its names, and a file system may be mounted when it is looked at.
        """
        with suppress(OSError):
            if not access(folder, os.R_OK):
                return True
            return status(path).st_dev != status(folder).st_dev
        return False

    def owned(
        self, path: str, *, follow: bool = True, keep: bool = True, opens: bool = True
    ) -> str:
        """Return where ``path``, a name of the user's, can be changed, and the original is not.

        What is above it becomes real folders, and so does a folder at its end, unless it stays
        without ``opens``. ``follow`` has a link at its end followed, and the file copied; without
        ``keep`` its content is not needed.

        Raises:
            OSError: it cannot be copied.
        """

        def bring(source: str, place: str, *, last: bool) -> None:
            if not last or follow or (opens and _is_folder(source)):
                self._bring(source, place, keep=keep or not last)

        return self._place(path, bring, follow=follow)

    def changeable(self, path: str) -> str:
        """Return where ``path``, a name of the user's, is; nothing if that is an original."""
        return self._place(path, None, follow=True)

    def _place(self, path: str, bring: Callable[..., None] | None, *, follow: bool) -> str:
        """Return where ``path`` leads to; an original on the way is first brought into the tree."""
        done, left, links = "", path.split("/")[1:], 0
        while left:
            name = left.pop(0)
            if not name:
                continue
            place = f"{self.root}{done}/{name}"
            link = _link(place)
            if bring is not None and not link and not ((left or follow) and _exists(place)):
                self.complete(done)  # it may be made or removed
                link = _link(place)
            source = _source(link)
            if source and self._passes("/".join((source, *left))):
                return "/".join((source, *left))
            if source:
                if bring is None:
                    return ""
                bring(source, place, last=not left)
            elif link and (left or follow):
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.path.normpath(os.path.join(done or "/", link))
                left, done = [*self.outside(target).split("/")[1:], *left], ""
                continue
            done = f"{done}/{name}"
        return self.root + done

    # --- entries ----------------------------------------------------------------------------------

    def _bring(self, source: str, place: str, *, keep: bool) -> None:
        """Put a real folder or file in place of a link, such that nobody finds neither."""
        with self._alone():
            if original(place) != source:
                return  # another process was first
            found = status(source)
            if stat.S_ISDIR(found.st_mode):
                self._make_folder(source, self._spare)
                _exchange(self._spare, place)
            elif stat.S_ISREG(found.st_mode):  # and no pipe, say
                self._copy(source if keep else os.devnull, place, found)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = open_file(f"{self._scratch}/lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _make_folder(self, source: str, place: str) -> None:
        mkdir(place)
        self._fill(source, place)
        # Whoever may not write in it gets to know that; what is ours must be removable.
        chmod(place, stat.S_IMODE(status(source).st_mode) & ~_PARTIAL | stat.S_IRWXU)

    def _fill(self, source: str, place: str) -> None:
        """Put a link into ``place`` for each entry of the folder ``source`` that it lacks."""
        with suppress(PermissionError), scandir(source) as entries:
            for entry in entries:
                path = f"{source.rstrip('/')}/{entry.name}"
                if path == self._scratch:
                    continue
                link = _MARK + path
                if entry.is_symlink():
                    link = _link(path)
                    if link.startswith("/"):
                        link = self.root + link  # the same, and what is there can be changed
                # Without a link to read, it has just been removed.
                if link and not _exists(f"{place}/{entry.name}"):
                    symlink(link, f"{place}/{entry.name}")

    def _copy(self, source: str, place: str, found: os.stat_result) -> None:
        """Copy a file over the link to it, with the mode and times that were ``found``."""
        spare, new = self._spare, os.O_CREAT | os.O_TRUNC | os.O_WRONLY
        with os.fdopen(open_file(source, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
            number = open_file(spare, new | os.O_CLOEXEC, 0o600)
            with os.fdopen(number, "wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        chmod(spare, stat.S_IMODE(found.st_mode))
        _copy_times(found, spare)
        replace(spare, place)


def _copy_times(found: os.stat_result, place: str) -> None:
    utime(place, ns=(found.st_atime_ns, found.st_mtime_ns))


def _names(folder: str, most: int) -> list[str]:
    """Return the names in ``folder``, or ``most`` of them."""
    try:
        with scandir(folder) as entries:
            return [entry.name for entry in islice(entries, most)]
    except OSError:
        return []


def _exists(path: str) -> bool:
    try:
        lstat(path)
    except (OSError, ValueError):
        return False
    return True


def _is_worked_in(folder: str, names: Iterable[str]) -> bool:
    """Whether a program may write in ``folder``, in which ``names`` are."""
    if os.path.basename(folder) in _UNUSED or not access(folder, os.R_OK | os.X_OK):
        return False
    return not {*_ENVIRONMENT} & {*names}


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(status(path).st_mode)
    except OSError:
        return False


def _is_small(found: os.stat_result) -> bool:
    """Whether a file is worth a copy before anybody asks for one."""
    return stat.S_ISREG(found.st_mode) and found.st_size <= SMALL


def _exchange(folder: str, link: str) -> None:
    """Put ``folder`` in the place of ``link``, and remove the link."""
    library = ctypes.CDLL(None)
    words = (os.fsencode(folder), os.fsencode(link))
    exchanged = -1
    with suppress(AttributeError):  # not Linux
        exchanged = library.renameat2(_HERE, words[0], _HERE, words[1], _EXCHANGE)
    if exchanged == 0:
        unlink(folder)
    else:
        unlink(link)
        rename(folder, link)


# --- what was written -----------------------------------------------------------------------------


def is_as_it_was(place: str, path: str) -> bool:
    """Whether the entry of a tree at ``place``, the user's ``path``, is as it was at the start."""
    try:
        before, now = lstat(path), lstat(place)
    except OSError:
        return False
    if stat.S_ISLNK(now.st_mode):
        link = _link(place)
        return link == _MARK + path or link.endswith(_link(path) or "\0")
    return (before.st_mode, before.st_size, before.st_mtime_ns) == (
        now.st_mode,
        now.st_size,
        now.st_mtime_ns,
    )
