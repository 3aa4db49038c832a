"""What the headers of training scripts find is what they find under python."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nnaudit.app.module_name import file_of
from nnaudit.engine.job import Job
from nnaudit.processes import supervisor
from nnaudit.settings import Settings

LOOKS = (
    "__name__",
    "__file__",
    "__doc__",
    "__package__",
    "__spec__ and __spec__.name",
    "__cached__",
    "__annotations__",
    "type(__loader__).__name__",
    "type(__builtins__).__name__",
    "sorted(name for name in globals() if name.startswith('__'))",
    "sys.modules['__main__'].__dict__ is globals()",
    "sys.argv",
    "sys.path",
    "sys.exc_info()",
    "sys.stdin.fileno()",
    "sys.stdin.isatty()",
    "sys.stdin.read()",
    "sys.stdout.isatty()",
    "sys.stdout is sys.__stdout__",
    "sys.excepthook is sys.__excepthook__",
    "sys.getrecursionlimit()",
    "os.getcwd()",
    "os.path.dirname(os.path.realpath(__file__))",
    "os.path.expanduser('~')",
    "os.listdir()",
    "os.environ.get('MASTER_ADDR')",
    "os.environ.get('RANK')",
    "os.getuid()",
    "os.umask(0o22)",
    "getpass.getuser()",
    "socket.gethostname()",
    "pathlib.Path('data').resolve()",
    "argparse.ArgumentParser().prog",
    "inspect.getsource(sys.modules['__main__']).splitlines()[0]",
    "inspect.currentframe().f_code.co_filename",
    "linecache.getline(__file__, 1)",
    "logging.getLogger().handlers",
    "logging.getLogger().level",
    "threading.current_thread().name",
    "threading.current_thread() is threading.main_thread()",
    "threading.active_count()",
    "signal.getsignal(signal.SIGINT)",
    "signal.getsignal(signal.SIGTERM)",
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    "signal.pthread_sigmask(signal.SIG_BLOCK, [])",
    "pickle.loads(pickle.dumps(Config())).__class__ is Config",
    "torch.get_num_threads()",
    "torch.get_default_dtype()",
    "torch.is_grad_enabled()",
    "torch.are_deterministic_algorithms_enabled()",
    "torch.backends.cudnn.benchmark",
    "torch.multiprocessing.get_start_method(allow_none=True)",
    "torch.multiprocessing.get_sharing_strategy()",
    "torch.initial_seed() == torch.default_generator.initial_seed()",
)
SCRIPT = f"""
import argparse, getpass, inspect, json, linecache, logging, os, pathlib, pickle, signal, socket
import sys, threading, torch
class Config: pass
found = dict()
for look in {LOOKS!r}:
    try:
        found[look] = repr(eval(look))
    except Exception as error:
        found[look] = repr(error)
if not pathlib.Path(sys.argv[1]).read_text():  # the first execution
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x in torch.utils.data.DataLoader(torch.randn(64, 4), batch_size=8, shuffle=True):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True)).backward()
    optimizer.step()
"""
FORMS = ("file", "module")


@pytest.fixture(scope="module", params=FORMS)
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, str]]:
    """What a script sees under python, and under nnaudit."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "train.py").write_text(SCRIPT)
    named = ["-m", "package.train"] if request.param == "module" else ["package/train.py"]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("python.json", "nnaudit.json"):
            result = folder.parent / f"{folder.name}-{name}"
            result.touch()
            words = (str(result), "--lr", "0.1")
            if name == "python.json":
                subprocess.run(
                    [sys.executable, *named, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    check=True,
                )
            else:
                _inspected(request.param, words, str(result))
            text = json.loads(result.read_text())
            found.append({look: seen.replace(str(result), "RESULT") for look, seen in text.items()})
    return found[0], found[1]


def _inspected(form: str, words: tuple[str, ...], result: str) -> None:
    module = "package.train" if form == "module" else ""
    job = Job(
        path=file_of(module) if module else "package/train.py",
        module=module,
        arguments=words,
        settings=Settings(device="cpu", allow_write=(result,)),
    )
    nothing, before = os.open(os.devnull, os.O_RDONLY), os.dup(0)
    os.dup2(nothing, 0)
    try:
        supervisor.inspect(job)
    finally:
        os.dup2(before, 0)
        os.close(nothing)
        os.close(before)


@pytest.mark.parametrize("look", LOOKS)
def test_a_script_sees_what_it_sees_under_python(
    look: str, seen: tuple[dict[str, str], dict[str, str]]
) -> None:
    under_python, under_nnaudit = seen
    assert under_nnaudit[look] == under_python[look]
