"""Learning rates that are lowered where no optimizer looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.measure.rate_variables import single_rates, unread_rates
from nnaudit.targets.source import source_of

SCRIPT = """
def main(args):
    lr = args.lr
    optimizer = SGD(model.parameters(), lr=lr)
    for epoch in range(9):
        train(optimizer)
        if epoch % 3 == 0:
            CHANGE
        print(f"rate {lr}")
        USE
"""


@pytest.mark.parametrize(
    ("change", "use", "found"),
    [
        ("lr *= 0.1", "pass", True),
        ("lr = lr * 0.1", "logger.info('rate %f', lr)", True),
        ("lr = max(lr / 10, 1e-06)", "pass", True),
        ("lr *= 0.1", "optimizer = SGD(model.parameters(), lr=lr)", False),
        ("lr *= 0.1", "adjust(optimizer, lr)", False),
        ("lr *= 0.1", "optimizer.param_groups[0]['lr'] = lr", False),
        ("lr *= 0.1", "if lr < 1e-6: break", False),
        ("lr *= 0.1", "step = lambda: descend(lr)", False),
        ("lr = 0.1", "pass", False),
        ("scale *= 0.1", "pass", False),
    ],
)
def test_rates_that_nothing_reads(tmp_path: Path, change: str, use: str, *, found: bool) -> None:
    file = tmp_path / "train.py"
    file.write_text(SCRIPT.replace("CHANGE", change).replace("USE", use))
    rates = list(unread_rates([source_of(str(file))]))
    assert [rate.text for rate in rates] == [change] * found
    assert all(rate.location.line == 8 for rate in rates)


def test_a_module_s_rate_may_be_read_by_its_functions(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    text = "lr = 0.1\ndef step():\n    READ\nfor epoch in range(9):\n    step()\n    lr /= 2\n"
    file.write_text(text.replace("READ", "return descend(lr)"))
    assert not list(unread_rates([source_of(str(file))]))
    other = tmp_path / "other.py"
    other.write_text(text.replace("READ", "pass"))
    assert len(list(unread_rates([source_of(str(other))]))) == 1


@pytest.mark.parametrize(
    ("text", "groups", "found"),
    [
        ('optimizer.param_groups[0]["lr"] = lr', 2, 1),
        ('self.opt.param_groups[-1]["lr"] *= 0.1', 2, 1),
        ('config["lr"] = 1\noptimizer.param_groups[0]["lr"] = config["lr"]', 2, 1),
        ('optimizer.param_groups[0]["lr"] = lr', 1, 0),
        ('a.param_groups[0]["lr"] = lr\na.param_groups[1]["lr"] = lr', 2, 0),
        ('for g in a.param_groups:\n    g["lr"] = 1\na.param_groups[0]["lr"] = 2', 2, 0),
        ('for i, r in enumerate(rates):\n    a.param_groups[i]["lr"] = r', 2, 0),
        ('lr = a.param_groups[0]["lr"]', 2, 0),
    ],
)
def test_a_rate_of_one_group(tmp_path: Path, text: str, groups: int, found: int) -> None:
    file = tmp_path / "train.py"
    file.write_text(text)
    assert len(list(single_rates([source_of(str(file))], groups))) == found
