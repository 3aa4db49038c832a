# pathlib calls the very functions that are replaced here.
# ruff: noqa: PTH100, PTH109, PTH112, PTH115, PTH118, PTH120
"""A copy-on-write view of the file system, made of patched functions.

For where the kernel will not lay one (:mod:`nnaudit.state.namespaces`). The program works in a tree
of its own (:mod:`nnaudit.state.mirror`), in which files are what they are outside until they are
written; child programs and C libraries work there, too. Python's own functions (``open``, ``os``,
``shutil.rmtree``), and a few common writers from compiled code, are replaced by some that take the
user's own paths to the tree, and that put a copy where the tree has a link only.

Everything is protected except devices and what is written for real; temporary folders are too,
where the kernel refuses to write to them. Not seen: child programs, and other libraries' compiled
writers, that are given a path outside of the tree, or write to what is a link in it.
"""

from __future__ import annotations

import builtins
import bz2
import errno
import importlib
import importlib.util
import io
import os
import shutil
import sqlite3
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch

from nnaudit.errors import is_library
from nnaudit.state import mirror
from nnaudit.state.files import FIRST_LAYER
from nnaudit.state.mirror import Mirror
from nnaudit.state.namespaces import is_under

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Overlay:
    """Diverts writes into a scratch folder for the time of a ``with``.

    Attributes:
        label: how reports call this protection.
        scratch: the folder that is written to.
        tree: in it, what the program sees of the file system.
    """

    def __init__(
        self,
        protected: Iterable[str],
        *,
        real: Iterable[str] = (),
        scratch: str = "",
        refusing: bool = False,
        moves_in: bool = False,
    ) -> None:
        """Prepare it.

        Args:
            protected: folders whose files are the user's even inside a temporary folder.
            real: files and folders that are written for real.
            scratch: the folder to write to; a temporary one where none is given.
            refusing: whether the kernel refuses to write what is not diverted.
            moves_in: whether the program works in the tree, where others than Python see it, too.
        """
        self.label = "python with Landlock" if refusing else "python"
        self._protected = tuple(os.path.abspath(folder) for folder in protected)
        self._moves_in = moves_in
        self.scratch, self._refusing = scratch, refusing
        temporary = () if refusing else (tempfile.gettempdir(), "/tmp", "/var/tmp")
        self._given, self._free = tuple(real), ("/dev", "/proc", "/sys", *temporary)
        self._stack = ExitStack()
        self._real: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.scratch = os.path.realpath(
                self.scratch or stack.enter_context(tempfile.TemporaryDirectory(prefix="nnaudit-"))
            )
            self.tree = Mirror(os.path.join(self.scratch, FIRST_LAYER), self._passes)
            if not os.path.isdir(self.tree.root):  # another process's, to be shared
                self._grow()
            if self._moves_in:
                self._move_in(stack)
            for name in ("access", "readlink", "stat"):
                self._real[name] = getattr(os, name)
            for owner, name, make in self._patches():
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, make(getattr(owner, name)))
            stack.callback(setattr, sys, "dont_write_bytecode", sys.dont_write_bytecode)
            sys.dont_write_bytecode = True
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _grow(self) -> None:
        self.tree.grow(self._protected if self._moves_in else ())

    def _move_in(self, stack: ExitStack) -> None:
        """Work in the tree, and import the user's modules from there, until ``stack`` ends."""
        here, path = os.getcwd(), list(sys.path)
        stack.callback(os.chdir, here)
        os.chdir(self.inside(here))
        stack.callback(sys.path.__setitem__, slice(None), path)
        sys.path[:] = [entry if is_library(entry) else self.inside(entry) for entry in path]

    def inside(self, path: str) -> str:
        """Return where the program finds ``path``: in the tree, if it is one of those protected."""
        place = self.tree.outside(path)
        return self.tree.root + place if self._moves_in and self._is_protected(place) else path

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Begin with the user's files as they are, for the time of a ``with``."""
        here = os.getcwd()
        with ExitStack() as stack:
            stack.callback(os.chdir, here)
            stack.enter_context(self.tree.fresh())
            self._grow()
            if os.path.isdir(here):
                os.chdir(here)
            yield

    def refuses(self, path: str) -> bool:
        """Whether the kernel refuses to write ``path`` although its mode would allow it."""
        there = path if os.path.lexists(path) else os.path.dirname(path)
        return self._refusing and bool(self._real["access"](there, os.W_OK))

    def _patches(self) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
        for owner, name in (
            (builtins, "open"),
            (io, "open"),
            (tarfile, "bltn_open"),
            (bz2, "_builtin_open"),
        ):
            if hasattr(owner, name):
                yield owner, name, self._make_open
        yield os, "open", self._make_os_open
        for name in ("access", "statvfs"):
            yield os, name, self._make_reading
        yield os, "chdir", self._make_chdir
        for name in ("stat", "lstat", "readlink"):
            yield os, name, self._make_looking
        for name in ("chmod", "utime", "chown", "lchown", "fchmod", "fchown", "setxattr",
                     "removexattr"):  # fmt: skip
            if hasattr(os, name):
                yield os, name, self._make_touching
        yield os, "truncate", lambda real: self._make_writing(real, keep=True)
        yield os, "mkdir", lambda real: self._make_changing(real, opens=False)
        for name in ("remove", "unlink", "rmdir"):
            yield os, name, self._make_changing
        for name in ("rename", "replace"):
            yield os, name, self._make_rename
        yield os, "symlink", self._make_symlink
        yield os, "link", self._make_link
        yield os, "listdir", self._make_listdir
        yield os, "scandir", self._make_scandir
        yield shutil, "rmtree", self._make_changing
        yield sqlite3, "connect", self._make_connect
        for owner in (torch, torch.serialization, torch.jit):
            yield owner, "save", lambda real: self._make_writing(real, keep=False, position=1)
        yield torch.jit, "load", self._make_reading
        if importlib.util.find_spec("safetensors") is not None:
            module = importlib.import_module("safetensors.torch")
            if hasattr(module, "serialize_file"):
                yield (
                    module,
                    "serialize_file",
                    lambda real: self._make_writing(real, keep=False, position=1),
                )

    # --- where a path leads -----------------------------------------------------------------------

    def _is_protected(self, place: str) -> bool:
        return any(is_under(place, folder) for folder in self._protected)

    def _passes(self, path: str) -> bool:
        """Whether ``path``, a name of the user's, is written for real."""
        guard, given, free = (
            max((len(folder) for folder in folders if is_under(path, folder)), default=0)
            for folders in (self._protected, self._given, self._free)
        )
        return free > guard or given >= max(guard, 1)

    def _place(self, path: Any, folder: int | None = None) -> tuple[str, str]:
        """Return the absolute path, and the user's name for it; that is empty if it may change.

        ``path`` may be relative to an open folder.
        """
        path = _from(folder, path)
        if isinstance(path, int) or path is None:
            return "", ""
        try:
            text = os.path.abspath(os.fsdecode(path))
        except TypeError:
            return "", ""
        place = self.tree.outside(text)
        if "/pymp-" in place or is_under(place, self.scratch) or self._passes(place):
            return text, ""
        return text, place

    def _reading(self, path: Any, folder: int | None = None) -> Any:
        """Return the path to read ``path`` from."""
        text, place = self._place(path, folder)
        if place and text != place and self._is_protected(place):
            return path  # in the tree, links lead on
        there = self.tree.reading(place) if place else self.tree.outside(text)
        return path if there == text else there

    def _listing(self, path: Any) -> Any:
        """Return the path to list ``path`` by."""
        _, place = self._place(path)
        if place:
            self.tree.complete(place)
        return self._reading(path)

    def _writing(self, path: Any, folder: int | None = None, **how: bool) -> Any:
        """Return the path at which to change ``path``; ``how`` as :meth:`Mirror.owned` has it."""
        text, place = self._place(path, folder)
        there = self.tree.owned(place, **how) if place else self.tree.outside(text)
        return path if there == text else there

    # --- the replacements -------------------------------------------------------------------------

    def _make_open(self, real: Any) -> Any:
        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if any(letter in mode for letter in "wax+"):
                file = self._writing(file, follow="x" not in mode, keep="w" not in mode)
            else:
                file = self._reading(file)
            return real(file, mode, *args, **kwargs)

        return open_

    def _make_os_open(self, real: Any) -> Any:
        def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & _WRITE_FLAGS:
                follow = not flags & (os.O_EXCL | os.O_NOFOLLOW)
                path = self._writing(path, dir_fd, follow=follow, keep=not flags & os.O_TRUNC)
            else:
                path = self._reading(path, dir_fd)
            opened: int = real(path, flags, mode, dir_fd=dir_fd)
            return opened

        return open_

    def _make_reading(self, real: Any) -> Any:
        def read(path: Any, *args: Any, **kwargs: Any) -> Any:
            return real(self._reading(path, kwargs.get("dir_fd")), *args, **kwargs)

        return read

    def _make_chdir(self, real: Any) -> Any:
        def chdir(path: Any) -> None:
            stays = not self._moves_in and not isinstance(path, int) and self._is_folder(path)
            real(path if stays else self._reading(path))

        return chdir

    def _is_folder(self, path: Any) -> bool:
        """Whether ``path`` is a folder outside of the tree."""
        try:
            return stat.S_ISDIR(self._real["stat"](path).st_mode)
        except OSError:
            return False

    def _make_looking(self, real: Any) -> Any:
        """Return ``real`` such that it sees an original where the tree has a link to it."""

        def look(path: Any, *args: Any, **kwargs: Any) -> Any:
            path = self._reading(path, kwargs.get("dir_fd"))
            if real.__name__ != "stat" or not kwargs.get("follow_symlinks", True):
                text, _ = self._place(path, kwargs.get("dir_fd"))
                path = (mirror.original(text) if is_under(text, self.tree.root) else "") or path
            return real(path, *args, **kwargs)

        return look

    def _make_writing(self, real: Any, *, keep: bool, position: int = 0) -> Any:
        def write(*args: Any, **kwargs: Any) -> Any:
            names = {"f", "filename", "path"} & kwargs.keys()
            if len(args) > position:
                path = args[position]
                if isinstance(path, (str, bytes, os.PathLike)):
                    args = (*args[:position], self._writing(path, keep=keep), *args[position + 1 :])
            elif names:
                name = names.pop()
                if isinstance(kwargs[name], (str, bytes, os.PathLike)):
                    kwargs[name] = self._writing(kwargs[name], keep=keep)
            return real(*args, **kwargs)

        return write

    def _make_touching(self, real: Any) -> Any:
        """Return ``real`` such that it does nothing to an original.

        That a large file is to have another mode is no reason to copy it.
        """

        def touch(path: Any, *args: Any, **kwargs: Any) -> None:
            named = self._opened(path) if isinstance(path, int) else path
            text, place = self._place(named, kwargs.get("dir_fd"))
            if isinstance(path, int):
                if not place or text != place:
                    real(path, *args, **kwargs)
                return
            there = self.tree.changeable(place) if place else self._reading(path)
            if there:
                real(there, *args, **kwargs)
            else:
                os.stat(path, dir_fd=kwargs.get("dir_fd"))  # it may not be there

        return touch

    def _opened(self, descriptor: int) -> Any:
        """Return the path that ``descriptor`` was opened by, where the system can tell."""
        try:
            return self._real["readlink"](f"/proc/self/fd/{descriptor}")
        except OSError:
            return None

    def _make_changing(self, real: Any, *, opens: bool = True) -> Any:
        """Return ``real``, which changes the entry itself that a path names."""

        def change(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> None:
            path = self._writing(path, dir_fd, follow=False, opens=opens)
            if dir_fd is not None:
                kwargs["dir_fd"] = dir_fd
            real(path, *args, **kwargs)

        return change

    def _make_rename(self, real: Any) -> Any:
        def rename(
            src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
        ) -> None:
            source = self._writing(src, src_dir_fd, follow=False)
            goal = self._writing(dst, dst_dir_fd, follow=False)
            try:
                real(source, goal, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            except OSError as error:
                # On one device they were, and are not, where one of them is written for real.
                here = [bool(self._place(path)[1]) for path in (src, dst)]
                if error.errno != errno.EXDEV or here[0] == here[1]:
                    raise
                shutil.move(source, goal)

        return rename

    def _make_symlink(self, real: Any) -> Any:
        def symlink(src: Any, dst: Any, *args: Any, **kwargs: Any) -> None:
            goal = self._writing(dst, kwargs.get("dir_fd"), follow=False, opens=False)
            real(src, goal, *args, **kwargs)

        return symlink

    def _make_link(self, real: Any) -> Any:
        def link(src: Any, dst: Any, **kwargs: Any) -> None:
            # A copy first, or what is written to one were written to the original.
            source = self._writing(src, kwargs.get("src_dir_fd"))
            goal = self._writing(dst, kwargs.get("dst_dir_fd"), follow=False, opens=False)
            real(source, goal, **kwargs)

        return link

    def _make_listdir(self, real: Any) -> Any:
        def listdir(path: Any = ".") -> list[Any]:
            names: list[Any] = real(self._listing(path))
            return names

        return listdir

    def _make_scandir(self, real: Any) -> Any:
        def scandir(path: Any = ".") -> Any:
            text, place = self._place(path)
            there = self._listing(path)
            if not place or (text == place and there is path):
                return real(there)
            return _Entries(real(there), path)

        return scandir

    def _make_connect(self, real: Any) -> Any:
        def connect(database: Any, *args: Any, **kwargs: Any) -> Any:
            text = os.fsdecode(database)
            if text and text != ":memory:" and not text.startswith("file:"):
                database = self._writing(database)
            return real(database, *args, **kwargs)

        return connect


class _Entry:
    """An entry of a folder as :class:`os.DirEntry` has it: a link to an original is the original.

    Attributes:
        name: its name.
        path: the folder as it was named, and that.
    """

    def __init__(self, entry: os.DirEntry[Any], folder: Any) -> None:
        """``entry`` is in the folder that the program calls ``folder``."""
        self.name = entry.name
        self.path = os.path.join(os.fspath(folder), entry.name)
        self._entry = entry

    def __fspath__(self) -> Any:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"

    @property
    def _linked(self) -> bool:
        return self._entry.is_symlink() and bool(mirror.original(os.fsdecode(self._entry.path)))

    def inode(self) -> int:
        """Return its number."""
        return self.stat(follow_symlinks=False).st_ino

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return what :func:`os.stat` does."""
        return self._entry.stat(follow_symlinks=follow_symlinks or self._linked)

    def is_symlink(self) -> bool:
        """Whether it is a link, of the user's."""
        return self._entry.is_symlink() and not self._linked

    def is_junction(self) -> bool:
        """Whether it is what only Windows has."""
        return False

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a folder, or a link to one."""
        return self._entry.is_dir(follow_symlinks=follow_symlinks or self._linked)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a file, or a link to one."""
        return self._entry.is_file(follow_symlinks=follow_symlinks or self._linked)


class _Entries:
    """What ``os.scandir`` returns: an iterator that can be closed."""

    def __init__(self, entries: Any, folder: Any) -> None:
        self._entries, self._folder = entries, folder

    def __iter__(self) -> Iterator[_Entry]:
        return self

    def __next__(self) -> _Entry:
        return _Entry(next(self._entries), self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder."""
        self._entries.close()


def _from(folder: int | None, path: Any) -> Any:
    """Return ``path`` as seen from the open folder ``folder``, where the system can tell."""
    if folder is None or isinstance(path, int):
        return path
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
    except OSError:
        return None
