# pathlib calls the very functions that are replaced here.
# ruff: noqa: PTH100, PTH102, PTH115, PTH118, PTH120
"""A copy-on-write view of the file system, made of patched functions.

For where the kernel will not lay one (:mod:`nnaudit.state.namespaces`). What the program writes,
makes, renames or removes happens in a scratch folder; what it then reads comes from there where it
differs. Its own files stay as they were. Everything is protected except devices and what is written
for real; temporary folders are too, where the kernel refuses to write to them.

It works on Python's own functions (``open``, ``os``, ``shutil.rmtree``) and on the few libraries
that write from compiled code and are common in training programs (``torch.save``, safetensors,
sqlite). Not seen: child programs, and other libraries' compiled writers (HDF5, OpenCV).
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

from nnaudit.state.files import FIRST_LAYER

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Overlay:
    """Diverts writes into a scratch folder for the time of a ``with``.

    Attributes:
        label: how reports call this protection.
        scratch: the folder that is written to.
    """

    def __init__(
        self,
        protected: Iterable[str],
        *,
        real: Iterable[str] = (),
        scratch: str = "",
        refusing: bool = False,
    ) -> None:
        """Prepare it.

        Args:
            protected: folders whose files are the user's even inside a temporary folder.
            real: files and folders that are written for real.
            scratch: the folder to write to; a temporary one where none is given.
            refusing: whether the kernel refuses to write what is not diverted.
        """
        self.label = "python with Landlock" if refusing else "python"
        self._protected = tuple(os.path.abspath(folder) for folder in protected)
        self.scratch, self._refusing = scratch, refusing
        self._allowed = ("/dev", "/proc", "/sys", *real)
        if not refusing:
            self._allowed += (tempfile.gettempdir(), "/tmp", "/var/tmp")
        self._hidden: set[str] = set()
        self._layer = ""
        self._off = False
        self._stack = ExitStack()
        self._real: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.scratch = os.path.realpath(
                self.scratch or stack.enter_context(tempfile.TemporaryDirectory(prefix="nnaudit-"))
            )
            self._layer = os.path.join(self.scratch, FIRST_LAYER)
            os.mkdir(self._layer)
            for name in ("open", "mkdir", "rmdir", "rename", "stat", "lstat", "listdir", "scandir",
                         "unlink", "readlink", "access"):  # fmt: skip
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

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Begin with the user's files as they are, for the time of a ``with``."""
        before = self._layer, self._hidden
        self._layer, self._hidden = tempfile.mkdtemp(dir=self.scratch), set()
        try:
            yield
        finally:
            self._layer, self._hidden = before

    def refuses(self, path: str) -> bool:
        """Whether the kernel refuses to write ``path`` although its mode would allow it."""
        there = path if self._really(path) else os.path.dirname(path)
        return self._refusing and bool(self._real["access"](there, os.W_OK))

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Paths mean what they say, for the time of a ``with``."""
        self._off = True
        try:
            yield
        finally:
            self._off = False

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
        for name in ("stat", "lstat", "access", "readlink", "statvfs"):
            yield os, name, self._make_reading
        for name in ("chmod", "utime", "chown", "lchown", "fchmod", "fchown", "setxattr",
                     "removexattr"):  # fmt: skip
            if hasattr(os, name):
                yield os, name, self._make_touching
        yield os, "chdir", self._make_chdir
        yield os, "truncate", lambda real: self._make_writing(real, keep=True)
        yield os, "mkdir", self._make_mkdir
        for name in ("remove", "unlink", "rmdir"):
            yield os, name, self._make_removing
        for name in ("rename", "replace"):
            yield os, name, self._make_rename
        yield os, "symlink", self._make_symlink
        yield os, "link", self._make_link
        yield os, "listdir", self._make_listdir
        yield os, "scandir", self._make_scandir
        yield shutil, "rmtree", self._make_rmtree
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

    def _protected_path(self, path: Any) -> str:
        """The absolute path, if it is one that must not change; else an empty string."""
        if isinstance(path, int) or path is None:
            return ""
        try:
            text = os.fsdecode(path)
        except TypeError:
            return ""
        text = os.path.abspath(text)
        if not self._layer or self._off or "/pymp-" in text:
            return ""
        if _under(text, self._layer):
            # A relative path in a folder that exists in the scratch folder only.
            text = text.removeprefix(self._layer) or "/"
        if _under(text, self.scratch):
            return ""
        guard = max((len(f) for f in self._protected if _under(text, f)), default=-1)
        free = max((len(f) for f in self._allowed if _under(text, f)), default=-1)
        return "" if free > guard else text

    def _mirror(self, path: str) -> str:
        return self._layer + path

    def _is_hidden(self, path: str) -> bool:
        return any(_under(path, hidden) for hidden in self._hidden)

    def _exists(self, path: str) -> bool:
        return self._mirrored(path) or (self._really(path) and not self._is_hidden(path))

    def _mirrored(self, path: str) -> bool:
        return self._really(self._mirror(path))

    def _really(self, path: str) -> bool:
        try:
            self._real["lstat"](path)
        except (OSError, ValueError):
            return False
        return True

    def _is_folder(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(self._real["stat"](path).st_mode)
        except OSError:
            return False

    def _reading(self, path: Any) -> Any:
        """Return the path to read ``path`` from."""
        place = self._protected_path(path)
        if not place or not (self._is_hidden(place) or self._mirrored(place)):
            return path
        return self._mirror(place)

    def _writing(self, path: Any, *, keep: bool) -> Any:
        """Return the path to write ``path`` to; ``keep`` brings its present content along."""
        place = self._protected_path(path)
        if not place or self._is_folder(place):
            return path
        mirror = self._mirror(place)
        parent = os.path.dirname(place)
        if self._exists(parent):
            self._make_folders(os.path.dirname(mirror))
        if keep and not self._mirrored(place) and self._exists(place):
            with self._plainly():
                shutil.copyfile(place, mirror)
        return mirror

    def _make_folders(self, folder: str) -> None:
        if not self._really(folder):
            self._make_folders(os.path.dirname(folder))
            self._real["mkdir"](folder)

    # --- the replacements -------------------------------------------------------------------------

    def _make_open(self, real: Any) -> Any:
        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if any(letter in mode for letter in "wax+"):
                place = self._protected_path(file)
                if "x" in mode and place and self._exists(place):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), file)
                return real(self._writing(file, keep="w" not in mode), mode, *args, **kwargs)
            return real(self._reading(file), mode, *args, **kwargs)

        return open_

    def _make_os_open(self, real: Any) -> Any:
        def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if dir_fd is None:
                if flags & _WRITE_FLAGS:
                    place = self._protected_path(path)
                    if flags & os.O_EXCL and place and self._exists(place):
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
                    path = self._writing(path, keep=not flags & os.O_TRUNC)
                else:
                    path = self._reading(path)
            opened: int = real(path, flags, mode, dir_fd=dir_fd)
            return opened

        return open_

    def _make_reading(self, real: Any) -> Any:
        def read(path: Any, *args: Any, **kwargs: Any) -> Any:
            return real(
                path if kwargs.get("dir_fd") is not None else self._reading(path), *args, **kwargs
            )

        return read

    def _make_chdir(self, real: Any) -> Any:
        def chdir(path: Any) -> None:
            place = self._protected_path(path)
            only_here = place and (self._is_hidden(place) or not self._really(place))
            real((self._mirror(place) if only_here else place) if place else path)

        return chdir

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
        def touch(path: Any, *args: Any, **kwargs: Any) -> None:
            named = self._opened(path) if isinstance(path, int) else path
            place = self._protected_path(named) if kwargs.get("dir_fd") is None else ""
            if place and not self._mirrored(place) and self._exists(place):
                return
            real(self._mirror(place) if place and path is named else path, *args, **kwargs)

        return touch

    def _opened(self, descriptor: int) -> Any:
        """Return the path that ``descriptor`` was opened by, where the system can tell."""
        try:
            return self._real["readlink"](f"/proc/self/fd/{descriptor}")
        except OSError:
            return None

    def _make_mkdir(self, real: Any) -> Any:
        def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            place = self._protected_path(path) if dir_fd is None else ""
            if not place:
                real(path, mode, dir_fd=dir_fd)
                return
            if self._exists(place):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            if not self._exists(os.path.dirname(place)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self._make_folders(os.path.dirname(self._mirror(place)))
            real(self._mirror(place), mode)

        return mkdir

    def _make_removing(self, real: Any) -> Any:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            place = self._protected_path(_from(dir_fd, path))
            if not place:
                real(path, dir_fd=dir_fd)
                return
            if not self._exists(place):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if real is self._real["rmdir"] and self._is_folder(place) and self._entries(place):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
            if self._mirrored(place):
                real(self._mirror(place))
            if self._really(place):
                self._hidden.add(place)

        return remove

    def _make_rename(self, real: Any) -> Any:
        def rename(src: Any, dst: Any, **kwargs: Any) -> None:
            source, goal = self._protected_path(src), self._protected_path(dst)
            if any(value is not None for value in kwargs.values()) or not (source or goal):
                real(src, dst, **kwargs)
                return
            if source and not self._exists(source):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), src)
            src = self._brought_along(source) if source else src
            if goal:
                self._make_folders(os.path.dirname(self._mirror(goal)))
                self._hidden.discard(goal)
                dst = self._mirror(goal)
            try:
                real(src, dst)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                with self._plainly():
                    shutil.move(src, dst)
            if source and self._really(source):
                self._hidden.add(source)

        return rename

    def _brought_along(self, place: str) -> str:
        """Make sure that ``place`` is in the scratch folder, with its content."""
        mirror = self._mirror(place)
        if not self._mirrored(place):
            self._make_folders(os.path.dirname(mirror))
            copy: Callable[..., Any] = (
                shutil.copytree if self._is_folder(place) else shutil.copyfile
            )
            with self._plainly():
                copy(place, mirror)
        return mirror

    def _make_symlink(self, real: Any) -> Any:
        def symlink(src: Any, dst: Any, *args: Any, **kwargs: Any) -> None:
            place = self._protected_path(dst)
            if place and self._exists(place):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), dst)
            real(src, self._writing(dst, keep=False), *args, **kwargs)

        return symlink

    def _make_link(self, real: Any) -> Any:
        def link(src: Any, dst: Any, **kwargs: Any) -> None:
            place = self._protected_path(dst)
            if place and self._exists(place):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), dst)
            if place:
                # A copy, for the scratch folder may be on another device.
                source, goal = self._reading(src), self._writing(dst, keep=False)
                with self._plainly():
                    shutil.copyfile(source, goal)
                return
            real(self._reading(src), dst, **kwargs)

        return link

    def _make_listdir(self, real: Any) -> Any:
        def listdir(path: Any = ".") -> list[Any]:
            place = self._protected_path(path)
            if not place or not self._differs(place):
                names: list[Any] = real(path)
                return names
            return [entry.name for entry in self._entries(place)]

        return listdir

    def _make_scandir(self, real: Any) -> Any:
        def scandir(path: Any = ".") -> Any:
            place = self._protected_path(path)
            if not place or not self._differs(place):
                return real(path)
            return _Entries(self._entries(place))

        return scandir

    def _differs(self, place: str) -> bool:
        return self._mirrored(place) or any(_under(hidden, place) for hidden in self._hidden)

    def _entries(self, place: str) -> list[os.DirEntry[str]]:
        found: dict[str, os.DirEntry[str]] = {}
        if self._really(place) and not self._is_hidden(place):
            with self._real["scandir"](place) as entries:
                found = {
                    e.name: e for e in entries if not self._is_hidden(os.path.join(place, e.name))
                }
        elif not self._mirrored(place):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        if self._mirrored(place):
            with self._real["scandir"](self._mirror(place)) as entries:
                found.update({entry.name: entry for entry in entries})
        return list(found.values())

    def _make_rmtree(self, real: Any) -> Any:
        def rmtree(path: Any, *args: Any, **kwargs: Any) -> None:
            place = self._protected_path(path)
            if not place or not self._exists(place):
                real(path, *args, **kwargs)
                return
            if self._mirrored(place):
                with self._plainly():
                    real(self._mirror(place))
            if self._really(place):
                self._hidden.add(place)

        return rmtree

    def _make_connect(self, real: Any) -> Any:
        def connect(database: Any, *args: Any, **kwargs: Any) -> Any:
            text = os.fsdecode(database)
            if text and text != ":memory:" and not text.startswith("file:"):
                database = self._writing(database, keep=True)
            return real(database, *args, **kwargs)

        return connect


class _Entries:
    """What ``os.scandir`` returns: an iterator that can be closed."""

    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self._entries

    def __next__(self) -> os.DirEntry[str]:
        return next(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open."""


def _under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _from(folder: int | None, path: Any) -> Any:
    """Return ``path`` as seen from the open folder ``folder``, where the system can tell."""
    if folder is None:
        return path
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
    except OSError:
        return None
