"""The user's files while a program runs, at each level. Most programs here need no torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from programs import SOURCE

from nnaudit.engine.job import Ended, Event, Job, Protected, Refused
from nnaudit.engine.record import RefusedError
from nnaudit.processes import child, supervisor
from nnaudit.processes.child import Child
from nnaudit.report import Report, Status
from nnaudit.settings import Settings
from nnaudit.state import files, landlock, namespaces

SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset
x = torch.randn(256, 8)
model = torch.nn.Linear(8, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""

STAND_IN = Path(__file__).with_name("stand_in.py")


@cache
def why_no_kernel() -> str:
    """Return why this machine does not allow the first level; nothing where it does."""
    flags = namespaces.NEW_MOUNTS | namespaces.NEW_PROCESSES
    flags |= 0 if os.geteuid() == 0 else namespaces.NEW_USERS
    script = f"from nnaudit.state import namespaces; namespaces.enter_namespaces({flags})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    return done.stderr.strip().rpartition("\n")[2]


@pytest.fixture(params=["privileged", "unprivileged"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first level, as root has it and as others do."""
    if why_no_kernel():
        pytest.skip(f"the kernel does not allow namespaces here: {why_no_kernel()}")
    if request.param == "unprivileged":
        monkeypatch.setenv("STAND_IN_UNPRIVILEGED", "yes")
    elif os.geteuid() != 0:
        pytest.skip("only root mounts without a user namespace")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of the user's, which is the working folder, in a home of its own."""
    home, folder = tmp_path / "home", tmp_path / "home" / "project"
    (folder / "runs" / "1").mkdir(parents=True)
    (folder / "runs" / "1" / "best.pt").write_text("best")
    (folder / "log.csv").write_text("epoch,loss\n")
    (folder / "train.py").write_text("")
    (home / "notes.txt").write_text("notes")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-P", str(STAND_IN)))
    return folder


Ran = tuple[list[Event], Ended, str]


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    def run(text: str, *, keep: str = "", **settings: object) -> Ran:
        """Run ``text`` as a program; return what was said of it, and what it printed."""
        monkeypatch.setenv("STAND_IN", text)
        job = Job(path=str(project / "train.py"), settings=Settings(**settings), keep=keep)  # type: ignore[arg-type]
        with Child(job) as started:
            events = list(started.events(lambda: 60.0))
            started.end()
            ended = started.ended or Ended(code=-1)
            return events, ended, started.output()

    return run


def state_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about the files in ``folder`` that a program could change."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        text = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        when = 0 if path.is_dir() else status.st_mtime_ns
        found[str(path)] = (status.st_mode, status.st_uid, when, status.st_nlink, text)
    return found


WAYS = {
    "open": 'open("log.csv", "a").write("HACK")',
    "new file": 'open("new.csv", "w").write("HACK")',
    "new folder": 'os.makedirs("a/b/c")',
    "home": 'open(os.path.expanduser("~/notes.txt"), "w").write("HACK")',
    "above": 'open("../other.txt", "w").write("HACK")',
    "raw file": 'io.FileIO("log.csv", "w").write(b"HACK")',
    "descriptor": 'os.write(os.open("log.csv", os.O_WRONLY | os.O_TRUNC), b"HACK")',
    "from a folder": 'os.unlink("log.csv", dir_fd=os.open(".", os.O_RDONLY))',
    "map": 'm = mmap.mmap(os.open("log.csv", os.O_RDWR), 0); m[:4] = b"HACK"; m.flush()',
    "C library": 'ctypes.CDLL(None).unlink(b"log.csv")',
    "child program": 'subprocess.run("rm -r runs; echo HACK > log.csv", shell=True)',
    "forked": 'os.waitpid(os.fork() or (open("log.csv", "w").write("HACK"), os._exit(0)), 0)',
    "remove tree": 'shutil.rmtree("runs")',
    "rename folder": 'os.rename("runs", "old_runs")',
    "replace": 'open("x", "w"); os.replace("x", "log.csv")',
    "mode": 'os.chmod("log.csv", 0o600)',
    "time": 'os.utime("log.csv", (1, 1))',
    "truncate": 'os.truncate("log.csv", 0)',
    "link": 'os.link("log.csv", "hard"); os.symlink("log.csv", "soft")',
    "database": 'sqlite3.dbapi2.connect("d.db").execute("create table t (a)")',
    "temporary": 'tempfile.NamedTemporaryFile(dir=".", delete=False).write(b"HACK")',
}
IMPORTS = "import ctypes, io, mmap, os, shutil, sqlite3, subprocess, tempfile\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("kernel")
def test_no_way_of_writing_reaches_a_file(way: str, run: Callable[..., Ran], project: Path) -> None:
    before = state_of(project.parent)
    events, ended, output = run(f"{IMPORTS}{WAYS[way]}\nprint('done')", sandbox="kernel")
    assert events == [Protected(level="kernel")]
    assert (ended.code, output) == (0, "done\n")
    assert state_of(project.parent) == before


@pytest.mark.usefixtures("kernel")
def test_everybody_reads_what_was_written(run: Callable[..., Ran]) -> None:
    text = """
import ctypes, mmap, os, shutil, subprocess
open("new.txt", "w").write("new")
os.rename("runs", "results")
os.remove("log.csv")
assert subprocess.run(["cat", "new.txt"], capture_output=True).stdout == b"new"
assert ctypes.CDLL(None).access(b"new.txt", 0) == 0
assert mmap.mmap(os.open("new.txt", os.O_RDONLY), 0, prot=mmap.PROT_READ)[:] == b"new"
assert sorted(os.listdir()) == ["new.txt", "results", "train.py"]
assert open("results/1/best.pt").read() == "best"
shutil.rmtree("results"); os.makedirs("results")
assert os.listdir("results") == []
assert os.getcwd().endswith("/home/project")
assert os.readlink("/proc/self") == str(os.getpid())
open("/tmp/nobody_has_this", "w"); open("/dev/shm/nobody_has_this", "w")
print("done")
"""
    _, ended, output = run(text, sandbox="kernel")
    assert output == "done\n"
    assert not Path("/tmp/nobody_has_this").exists()
    assert not Path("/dev/shm/nobody_has_this").exists()
    assert ended.files == 1


@pytest.mark.usefixtures("kernel")
def test_another_execution_begins_with_the_users_files(run: Callable[..., Ran]) -> None:
    text = """
import os
open("last.pt", "w"); os.remove("log.csv"); os.makedirs("deep"); os.chdir("deep"); os.chdir("..")
for _ in range(2):
    with fresh():
        print(sorted(os.listdir()))
        open("second.pt", "w")
print(sorted(os.listdir()))
"""
    _, ended, output = run(text, sandbox="kernel")
    begun, again, back = output.splitlines()
    assert begun == again == "['log.csv', 'runs', 'train.py']"
    assert back == "['deep', 'last.pt', 'runs', 'train.py']"
    assert [Path(name).name for name in ended.names] == ["last.pt"]


@pytest.mark.usefixtures("kernel")
def test_workers_that_live_on_are_reached_in_another_execution(run: Callable[..., Ran]) -> None:
    text = """
import os
from multiprocessing.connection import Client, Listener
listener = Listener(family="AF_UNIX")
if os.fork() == 0:
    for _ in range(3):
        with listener.accept() as connection: connection.send("here")
    os._exit(0)
said = []
def ask():
    with Client(listener.address) as connection: said.append(connection.recv())
ask()
with fresh():
    ask()
ask()
print(*said)
"""
    _, ended, output = run(text, sandbox="kernel")
    assert (ended.code, output) == (0, "here here here\n")


def test_what_is_allowed_is_written_for_real(run: Callable[..., Ran], project: Path) -> None:
    cache = project.parent / ".cache" / "torch"
    cache.mkdir(parents=True)
    text = f'open("runs/1/new.pt", "w"); open("{cache}/weights", "w"); open("log.csv", "w")'
    run(text, allow_write=("runs",))
    assert (project / "runs" / "1" / "new.pt").exists()
    assert (cache / "weights").exists()
    if not why_no_kernel():
        assert (project / "log.csv").read_text() == "epoch,loss\n"


def test_a_path_to_allow_must_exist(run: Callable[..., Ran]) -> None:
    events, _, _ = run("", allow_write=("nowhere",))
    (refused,) = events
    assert isinstance(refused, Refused)
    assert (refused.exit_code, "nowhere" in refused.message) == (2, True)


@pytest.mark.parametrize("level", ["kernel", "off"])
def test_what_the_program_started_ends_with_it(level: str, run: Callable[..., Ran]) -> None:
    if level == "kernel" and why_no_kernel():
        pytest.skip(why_no_kernel())
    # A session of its own, and orphaned: neither its group nor its parent leads to it.
    name = f"{100 + os.getpid() / 1e7:.7f}"
    began = time.monotonic()
    run(f"import os; os.system('setsid sleep {name} & sleep 0.2')", sandbox=level)
    assert time.monotonic() - began < 30
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert f"sleep {name}" not in listed.stdout.splitlines()


@pytest.mark.usefixtures("kernel")
def test_files_that_were_written_can_be_kept(run: Callable[..., Ran], tmp_path: Path) -> None:
    text = (
        "import os; os.makedirs('a/__pycache__'); open('a/b.pt', 'w').write('b');"
        "open('a/__pycache__/c.pyc', 'w'); os.remove('log.csv'); open('/tmp/x', 'w')"
    )
    kept = tmp_path / "kept"
    _, ended, _ = run(text, keep=str(kept))
    assert [path for path in kept.rglob("*") if path.is_file()] == [kept / "a" / "b.pt"]
    assert (kept / "a" / "b.pt").read_text() == "b"
    assert (ended.files, ended.kept) == (1, str(kept))


@pytest.mark.usefixtures("kernel")
def test_a_file_that_does_not_fit_is_refused(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_SHARE", "1e-6")
    text = """
from nnaudit.state import files
try:
    with open("big.bin", "wb", buffering=0) as file:
        while True: file.write(bytes(1 << 16))
except OSError as error:
    error.filename = "big.bin"
    print(files.explained(error))
"""
    _, _, output = run(text, sandbox="kernel")
    assert "does not fit" in output
    assert "/big.bin allows it)" in output


@pytest.mark.usefixtures("kernel")
def test_a_program_that_fills_the_disk_is_ended(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_SHARE", "4e-5")
    text = """
import time
for i in range(10_000):
    with open(f"{i}.bin", "wb") as file: file.write(bytes(1 << 18))
    time.sleep(0.002)
"""
    _, ended, _ = run(text, sandbox="kernel")
    assert ended.code < 0
    assert "--allow-write" in ended.why


def test_the_last_of_the_output_is_kept(run: Callable[..., Ran]) -> None:
    _, _, output = run("for i in range(500_000): print(f'line {i}')")
    assert len(output) <= child.KEPT
    assert output.endswith("line 499999\n")


def test_nothing_is_left_behind(run: Callable[..., Ran], project: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)
    text = "import os; os.makedirs('a/b'); os.chmod('a/b', 0); os.chmod('a', 0)"
    try:
        child.tempfile.tempdir = None
        run(text)
    finally:
        del os.environ["TMPDIR"]
        child.tempfile.tempdir = None
    assert list(scratch.iterdir()) == []


# --- Landlock -------------------------------------------------------------------------------------


@pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")
@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("mode", "time")])
def test_the_kernel_refuses_what_is_not_allowed(way: str, project: Path) -> None:
    before = state_of(project.parent)
    text = (
        f"from nnaudit.state import landlock\nlandlock.write_only_under([])\n{IMPORTS}{WAYS[way]}"
    )
    subprocess.run([sys.executable, "-c", text], capture_output=True, check=False)
    assert state_of(project.parent) == before


@pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")
def test_what_is_allowed_can_be_written(project: Path) -> None:
    text = """
from nnaudit.state import landlock
landlock.write_only_under(["runs", "log.csv", "nowhere"])
open("runs/new", "w"); open("log.csv", "a").write("!")
"""
    subprocess.run([sys.executable, "-c", text], check=True)
    assert (project / "runs" / "new").exists()


@pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")
def test_files_of_devices_are_written_and_stay(project: Path) -> None:
    text = """
import os
from nnaudit.state import landlock
landlock.write_only_under([], in_place=["runs"])
open("runs/1/best.pt", "a").write("!")
for attempt in (lambda: os.unlink("runs/1/best.pt"), lambda: open("runs/new", "w")):
    try:
        attempt()
    except PermissionError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\nrefused\n"
    assert (project / "runs" / "1" / "best.pt").read_text() == "best!"
    assert not (project / "runs" / "new").exists()


# --- what is protected ----------------------------------------------------------------------------


def test_a_parent_of_the_project_is_no_cache(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "hub").mkdir()
    (tmp_path / "elsewhere" / "hub").mkdir(parents=True)
    (project / "hub").mkdir()
    places = files.places_of(project / "train.py")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(project))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    assert files.download_caches(places) == (str(tmp_path / "elsewhere" / "hub"),)


def test_the_project_is_where_its_mark_is(project: Path) -> None:
    (project / "pyproject.toml").touch()
    (project / "runs" / "train.py").touch()
    os.chdir(project / "runs")
    assert files.places_of(Path("train.py")) == (str(project / "runs"), str(project))


def test_mounts_are_listed_from_the_root() -> None:
    listed = [mount.point for mount in namespaces.mounts()]
    assert listed[0] == "/"
    assert "/proc" in listed
    assert len(set(listed)) == len(listed)


# --- whole audits ---------------------------------------------------------------------------------

LIBRARIES = """
import ctypes, io, mmap, numpy, os, shutil, sqlite3, subprocess, sys, tempfile, torch
from torch import nn

def attempt(act):
    try:
        act()
    except OSError as error:
        print(type(error).__name__)
    except Exception as error:
        print(error)

"""
COMPILED = {
    "savetxt": 'numpy.savetxt("log.csv", numpy.ones(3))',
    "tofile": 'numpy.ones(3).tofile("log.csv")',
    "memmap": 'numpy.memmap("log.csv", mode="r+")[:4] = 66',
    "torch.save": 'torch.save(torch.ones(2), "runs/1/best.pt")',
    "jit": 'torch.jit.script(nn.Linear(2, 2)).save("runs/1/best.pt")',
    "writer": 'torch._C.PyTorchFileWriter("runs/1/best.pt").write_end_of_file()',
    "shared": 'torch.from_file("log.csv", shared=True, size=4, dtype=torch.uint8).fill_(66)',
    "spawned": "subprocess.run([sys.executable, \"-c\", \"open('log.csv', 'w')\"])",
}
LINES = "".join(f"attempt(lambda: exec({way!r}))\n" for way in (*WAYS.values(), *COMPILED.values()))


@pytest.fixture
def whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    def audit(**settings: object) -> Report:
        """Audit train.py by a real worker."""
        job = Job(
            path=str(project / "train.py"),
            settings=Settings(select="GRAD102", **settings),  # type: ignore[arg-type]
        )
        return supervisor.audit(job)[0]

    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-P", "-m", "nnaudit.processes.sandbox"))
    return audit


@pytest.mark.slow
@pytest.mark.parametrize("level", ["kernel", "python"])
@pytest.mark.parametrize("source", ["module", "script"])
def test_no_audit_changes_a_file(
    level: str, source: str, whole: Callable[..., Report], project: Path
) -> None:
    if level == "kernel" and why_no_kernel():
        pytest.skip(why_no_kernel())
    if level == "python" and not landlock.version():
        pytest.skip("this kernel has no Landlock")
    text = LIBRARIES + LINES + (SOURCE if source == "module" else SCRIPT)
    (project / "train.py").write_text(text)
    before = state_of(project.parent)
    report = whole(sandbox=level)
    assert state_of(project.parent) == before
    assert report.result("GRAD102").status is Status.PASS
    assert report.target.form == source
    assert report.environment.sandbox == {"python": "python with Landlock"}.get(level, level)
    (part,) = [part for part in report.target.parts if part.name == "files"]
    assert "written to a scratch folder" in part.description


@pytest.mark.slow
def test_a_refused_write_names_the_path_and_the_flag(
    whole: Callable[..., Report], project: Path
) -> None:
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    # A path outside of the tree that the program works in, and a function that is not Python's.
    (project / "train.py").write_text(f"import io\nio.FileIO('{project}/log.csv', 'w')\n{SCRIPT}")
    with pytest.raises(RefusedError, match=f"--allow-write {project}/log.csv"):
        whole(sandbox="python")
    whole(sandbox="python", allow_write="log.csv")
    assert (project / "log.csv").read_text() == ""


@pytest.mark.slow
def test_the_second_level_reads_what_was_written(
    whole: Callable[..., Report], project: Path
) -> None:
    text = f"""
import os, shutil, subprocess, tempfile
import numpy, torch
import settings

assert settings.__file__ == os.path.join(os.getcwd(), "settings.py") != "{project}/settings.py"
assert os.path.dirname(__file__) == os.getcwd()
os.makedirs("results/a")
numpy.savetxt("results/split.txt", numpy.arange(9))
assert subprocess.run(["tail", "-n", "+2", "{{}}/results/split.txt".format(os.getcwd())],
                      capture_output=True).stdout.count(b"e") == 8
torch.save(torch.ones(3), "results/init.pt")
shutil.copy2("results/init.pt", "{project}/best.pt")
assert torch.load("best.pt", mmap=True).sum() == 3
open("made.py", "w").write("LR = 0.1")
import made
with tempfile.NamedTemporaryFile(dir=".") as file:
    file.write(b"x")
os.rename("runs", "old_runs")
assert subprocess.run("cat old_runs/1/best.pt; ls", shell=True, capture_output=True).stdout
{SCRIPT}"""
    (project / "settings.py").touch()
    (project / "train.py").write_text(text)
    before = state_of(project.parent)
    report = whole(sandbox="python")
    assert state_of(project.parent) == before
    assert report.result("GRAD102").status is Status.PASS
    places = {part.location.file for part in report.target.parts if part.location}
    assert places == {"train.py"}
    (part,) = [part for part in report.target.parts if part.name == "files"]
    assert "results/split.txt" in part.description
