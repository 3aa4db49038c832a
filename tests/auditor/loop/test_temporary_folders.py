"""Data in temporary folders that a script makes, and removes in the end."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from nnaudit.loop.script import ScriptLoop, run_script
from nnaudit.loop.script.temporary_folders import temporary_folders

SCRIPT = """
import shutil, tempfile
from pathlib import Path
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __init__(self, root):
        self.files = sorted(Path(root).glob("*.npy"))
    def __len__(self):
        return len(self.files)
    def __getitem__(self, i):
        x = torch.from_numpy(np.load(self.files[i]))
        return x, x.sum(0, keepdim=True)

def main():
    torch.manual_seed(0)
    HEAD
        for i in range(32):
            np.save(f"{root}/{i:02d}.npy", torch.randn(4).numpy())
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for x, y in DataLoader(Rows(root), 8, shuffle=True):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    TAIL

main()
"""

WAYS = {
    "a context": ("with tempfile.TemporaryDirectory() as root:", "pass"),
    "a finally": ("root = tempfile.mkdtemp()\n    try:", "finally: shutil.rmtree(root)"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_script_that_has_ended_still_finds_its_data(way: str, tmp_path: Path) -> None:
    head, tail = WAYS[way]
    file = tmp_path / "train.py"
    file.write_text(SCRIPT.replace("HEAD", head).replace("TAIL", tail))
    roots = set[Path]()

    def body(loop: ScriptLoop) -> int:
        roots.add(loop.train_loader.dataset.files[0].parent)
        batch = next(iter(loop.batches()))
        loop.step(batch)
        while loop.next_epoch(batch) is not None:
            pass
        return len(list(loop.batches()))

    assert run_script(file, [], "cpu", 0, body) == 4
    assert not any(root.exists() for root in roots)


def test_a_line_gets_the_same_names_in_every_execution() -> None:
    with temporary_folders() as folders:
        names = []
        for _ in range(2):
            folders.begin()
            for _ in range(2):
                with tempfile.TemporaryDirectory() as root:
                    names.append(root)
            folders.remove()
    first, second, *again = names
    assert first != second
    assert again == [first, second]
    assert not Path(first).exists()
