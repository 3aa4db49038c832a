"""Objects of a framework, handed over in a file: their own loop is driven."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnaudit.engine.job import Job
from nnaudit.errors import TargetError, UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.loop.script import ScriptLoop, run_script
from nnaudit.loop.script.objects import trains_itself
from nnaudit.processes import supervisor
from nnaudit.report import Report, Result, Status
from nnaudit.settings import Settings
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.targets import definitions
from nnaudit.targets import target as targets

pytestmark = pytest.mark.filterwarnings("ignore")

LIT = """
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, i):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, i):
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)

def rows():
    x = torch.randn(640, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x[:, :3].argmax(1))
"""

MODULE = (
    LIT
    + """
class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(rows(), 16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(rows(), 32)
"""
)

LOADERS = (
    "train_loader = DataLoader(rows(), 16, shuffle=True)\nval_loader = DataLoader(rows(), 32)\n"
)

BERT = """
import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

class Tokens(Dataset):
    def __init__(self, n):
        self.ids = torch.randint(5, 40, (n, 10), generator=torch.Generator().manual_seed(n))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": int(self.ids[i, 0] > 22)}

def make(**arguments):
    config = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=16, num_labels=2)
    arguments = TrainingArguments("hf_out", per_device_train_batch_size=8, learning_rate=2e-3,
                                  report_to=[], use_cpu=True, disable_tqdm=True, **arguments)
    return Trainer(BertForSequenceClassification(config), arguments, train_dataset=Tokens(64),
                   eval_dataset=Tokens(32))
"""

Drive = Callable[[str, Callable[[ScriptLoop], Any]], Any]


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    """Let ``body`` ask the loop of the objects that a file of this text hands over."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, body: Callable[[ScriptLoop], Any]) -> Any:
        path = tmp_path / "mine.py"
        path.write_text(text)
        assert definitions.form_of(path) == "module"
        assert trains_itself(path)
        answer = run_script(path, [], "cpu", 0, body, objects=True)
        assert [p.name for p in tmp_path.iterdir()] == ["mine.py"], "nothing is written"
        return answer

    return run


def parts(loop: ScriptLoop) -> dict[str, str]:
    assert loop.info().form == "module"
    return {part.name: f"{part.origin}: {part.description}" for part in loop.info().parts}


def weights(loop: ScriptLoop) -> str:
    return batches.digest([p.detach() for p in loop.model.parameters()])


def learns(loop: ScriptLoop) -> None:
    assert loop.lacks(Needs.STEPS) == ""
    batch = next(iter(loop.batches()))
    with preserved(loop.subjects):
        losses = [loop.step(batch).loss for _ in range(25)]
    assert losses[-1] < 0.9 * losses[0]
    with loop.relaunched(0) as again:
        assert weights(again) == weights(loop)  # type: ignore[arg-type]
    with loop.relaunched(1) as other:
        assert weights(other) != weights(loop)  # type: ignore[arg-type]


def asked(text: str, folder: Path, *codes: str) -> Report:
    """The whole way: a child process, from the file to the report."""
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(text))
    settings = Settings(select=codes, device="cpu")
    return supervisor.audit(Job(path=str(path), settings=settings))[0]


def only(report: Report) -> Result:
    (result,) = report.results
    return result


# --- Lightning ------------------------------------------------------------------------------------


def test_a_module_with_a_data_module(drive: Drive) -> None:
    pytest.importorskip("lightning")

    def body(loop: ScriptLoop) -> None:
        found = parts(loop)
        assert found["model"].startswith("user: Lit, ")
        assert found["train_loader"] == "user: DataLoader, batch size 16"
        assert found["val_loader"] == "user: DataLoader, batch size 32"
        assert found["loss"] == "user: cross_entropy, reduction mean"
        assert found["optimizer"] == "user: Adam, lr 0.01"
        assert found["trainer"].startswith("default: none: Lightning's with its defaults")
        learns(loop)

    drive(MODULE + "model = Lit()\ndatamodule = Data()\n", body)


def test_a_factory_with_loaders_and_a_trainer_of_ones_own(drive: Drive) -> None:
    pytest.importorskip("lightning")
    text = LOADERS + (
        "def build_model():\n    return Lit()\n"
        "def build_trainer():\n    return L.Trainer(accelerator='cpu', max_epochs=2,"
        " accumulate_grad_batches=2, logger=False, enable_progress_bar=False)\n"
    )

    def body(loop: ScriptLoop) -> None:
        found = parts(loop)
        assert found["trainer"] == "user: Lightning's: its own loop is audited"
        assert found["accumulation"].startswith("user: 2 batches for one optimizer step")
        assert loop.val_loader is not None
        learns(loop)

    drive(LIT + text, body)


def test_a_module_that_has_its_own_data(drive: Drive) -> None:
    pytest.importorskip("lightning")
    text = (
        "    def train_dataloader(self):\n        return DataLoader(rows(), 16, shuffle=True)\n"
        "import os\nassert __name__ != '__main__'\n"
    )
    text = LIT.replace("def rows", text + "def rows") + "def build_model():\n    return Own()\n"
    text = text.replace("    def train_dataloader", "class Own(Lit):\n    def train_dataloader")
    assert drive(text + "trainer = None\n", lambda loop: type(loop.model).__name__) == "Own"


@pytest.mark.usefixtures("warm_children")
def test_what_is_wrong_with_it_is_found_at_its_line(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    text = MODULE.replace("16, shuffle=True", "16") + "model = Lit()\ndatamodule = Data()\n"
    result = only(asked(text, tmp_path, "DATA104"))
    assert result.status is Status.FAIL
    assert result.location is not None
    line = text.splitlines()[result.location.line - 1]
    assert line.strip() == "return DataLoader(rows(), 16)"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.usefixtures("warm_children")
def test_without_data_it_is_only_a_model(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    report = asked(LIT + "model = Lit()\n", tmp_path, "DATA104")
    assert only(report).status is Status.SKIP
    assert "No train_loader is defined" in only(report).message


@pytest.mark.usefixtures("warm_children")
def test_a_factory_that_fails_is_the_users(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    path = tmp_path / "mine.py"
    path.write_text(MODULE + "def build_datamodule():\n    return missing\n\nmodel = Lit()\n")
    with pytest.raises(UserCodeError, match="building the data module"):
        trains_itself(path)


# --- transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["trainer = make(max_steps=400)\n", "def build_trainer():\n    return make(max_steps=400)\n"],
    ids=["object", "factory"],
)
def test_a_trainer(drive: Drive, text: str) -> None:
    pytest.importorskip("transformers")

    def body(loop: ScriptLoop) -> None:
        found = parts(loop)
        assert found["model"].startswith("user: BertForSequenceClassification")
        assert found["trainer"] == "user: Trainer of transformers: its own loop is audited"
        assert found["loss"] == "user: computed by the model"
        assert loop.lacks(Needs.VAL_LOADER) == ""
        learns(loop)

    drive(BERT + text, body)


# --- neither --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("warm_children")
def test_a_class_alone_is_asked_what_needs_no_data(tmp_path: Path) -> None:
    text = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x)
    """
    report = asked(text, tmp_path, "DATA104", "GRAD101")
    assert {result.status for result in report.results} == {Status.SKIP}
    gap = next(part for part in report.target.parts if part.name == "train_loader")
    assert (gap.origin, gap.disables) == ("absent", ("checks but those of the model alone",))


@pytest.mark.usefixtures("warm_children")
def test_a_trainer_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import torch\n\nclass Mine:\n    pass\n\ntrainer = Mine()\n")
    assert not trains_itself(path)
    with pytest.raises(TargetError, match="no model that can be built"):
        targets.load(path)


def test_looking_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text("import torch\ntorch.manual_seed(5)\nopen('log', 'w').close()\ntrainer = 1\n")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert not trains_itself(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.slow
def test_a_trainer_is_found_where_the_library_imports_it_only_when_it_is_used(
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers")
    names = ["BertConfig", "BertForSequenceClassification", "TrainingArguments", "Trainer"]
    text = BERT.replace(
        BERT[BERT.index("from transformers") :].splitlines()[0], "import transformers"
    )
    for name in names:
        text = text.replace(f"{name}(", f"transformers.{name}(")
    path = tmp_path / "mine.py"
    path.write_text(f"{text}\ndef build_trainer():\n    return make()\n")
    asked = "from nnaudit.loop.script.objects import trains_itself as t; import pathlib, sys; "
    # A process of its own: in this one another test may have had it imported.
    answer = subprocess.run(
        [sys.executable, "-P", "-c", asked + "print(t(pathlib.Path(sys.argv[1])))", str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert answer.stdout.strip() == "True"
