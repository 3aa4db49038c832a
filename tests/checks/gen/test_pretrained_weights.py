"""GEN103: weights that are read and do not arrive, and the many ways in which they may."""

from __future__ import annotations

import copy
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from nnaudit.checks.gen.pretrained_weights import PretrainedWeights, renamed
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.script import run_script
from nnaudit.report import Result, Status
from nnaudit.targets.target import load

PROGRAM = """
import copy
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

HERE = Path(__file__).parent


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.trunk(x))


def train_loader():
    x = torch.randn(128, 8)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)


def build_model():
    model = Net()
    state = torch.load(HERE / "weights.pt")
{body}
    return model


def main():
    model, optimizer = build_model(), None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in train_loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
"""


class Net(nn.Module):
    """The network whose weights the file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)


def program(folder: Path, body: str, prefix: str = "") -> Path:
    """Write a program whose ``build_model`` does ``body`` with the state dict in a file."""
    torch.manual_seed(7)
    state = {f"{prefix}{name}": tensor for name, tensor in Net().state_dict().items()}
    torch.save(state, folder / "weights.pt")
    path = folder / "program.py"
    path.write_text(PROGRAM.replace("{body}", textwrap.indent(textwrap.dedent(body), "    ")))
    return path


def ask(path: Path) -> Result:
    """Ask in module form."""
    return run_check(PretrainedWeights, Audit(DirectLoop(load(path), torch.device("cpu"), 0)))


def ask_script(path: Path) -> Result:
    """Ask in script form."""
    return run_script(path, [], "cpu", 0, lambda loop: run_check(PretrainedWeights, Audit(loop)))


LOST = "model.load_state_dict(state, strict=False)"


def test_a_prefix_that_no_name_has_fails_and_is_named(tmp_path: Path) -> None:
    result = ask(program(tmp_path, LOST, prefix="module."))
    assert result.status is Status.FAIL
    assert 'removeprefix("module.")' in result.fix
    assert result.location is not None


def test_a_prefix_that_is_lacking_is_named(tmp_path: Path) -> None:
    body = "model.load_state_dict({k[6:]: v for k, v in state.items()}, strict=False)"
    result = ask(program(tmp_path, body))
    assert result.status is Status.FAIL
    assert 'f"trunk.{k}"' in result.fix


@pytest.mark.parametrize(
    ("body", "prefix"),
    [
        (LOST, "module."),
        ("model.load_state_dict(state)\nmodel.apply(again)", ""),
        (
            "own = model.state_dict()\n"
            "own.update({k: v for k, v in state.items() if k in own})\n"
            "model.load_state_dict(own)",
            "net.",
        ),
        ("state = dict(state)", ""),
    ],
    ids=["nothing matches", "initialised after", "filtered to nothing", "read and forgotten"],
)
def test_weights_that_do_not_arrive_fail_in_both_forms(
    tmp_path: Path, body: str, prefix: str
) -> None:
    again = "def again(m):\n    if isinstance(m, nn.Linear):\n        m.reset_parameters()\n"
    path = program(tmp_path, again + body, prefix)
    for result in (ask(path), ask_script(path)):
        assert result.status is Status.FAIL, result.message
        assert result.fix


def test_half_of_the_names_differing_warns_or_fails(tmp_path: Path) -> None:
    body = """
    state = {k.replace("trunk.0", "stem").replace("trunk.2", "body"): v for k, v in state.items()}
    model.load_state_dict(state, strict=False)
    """
    assert ask(program(tmp_path, body)).status is Status.FAIL


@pytest.mark.parametrize(
    "body",
    [
        "model.load_state_dict(state)",
        'state.pop("head.weight"), state.pop("head.bias")\n' + LOST,
        'state["fc.weight"] = torch.randn(9, 16); del state["head.weight"], state["head.bias"]\n'
        + LOST,
        "model.load_state_dict(state)\nmodel.head = nn.Linear(16, 3)",
        "model.load_state_dict(state)\nmodel.trunk = nn.Sequential(*model.trunk[:2], "
        "nn.Linear(16, 16))",
        "model.load_state_dict(state)\nfor p in model.trunk.parameters(): p.requires_grad = False",
        "model.load_state_dict(state)\nmodel = copy.deepcopy(model)",
        "model.load_state_dict(state)\nwith torch.no_grad():\n"
        "    for p in model.parameters(): p.mul_(0.6).add_(0.05 * torch.randn_like(p))",
        "with torch.no_grad():\n    for n, p in model.named_parameters(): p.copy_(state[n])",
        "model.load_state_dict({k: v.half() for k, v in state.items()})",
        "nn.init.normal_(model.head.weight); model.load_state_dict(state)",
        'model.load_state_dict({f"net.{k}": v for k, v in state.items()}, strict=False)\n'
        "model.load_state_dict(state)",
        "model.teacher = [Net()]; model.teacher[0].load_state_dict(state)",
        "model.load_state_dict(state)\nnn.init.xavier_uniform_(model.trunk[2].weight)",
        "model.load_state_dict(state); model.ema = [copy.deepcopy(model)]\n"
        "model.ema[0].load_state_dict(model.state_dict())",
    ],
)
def test_weights_that_are_used_are_no_finding(tmp_path: Path, body: str) -> None:
    path = program(tmp_path, body)
    for result in (ask(path), ask_script(path)):
        assert result.status in (Status.PASS, Status.SKIP), result.message


def test_names_that_differ_by_a_part_that_is_put_in() -> None:
    square, other = torch.zeros(2, 2), torch.zeros(2, 3)
    offered = {"blocks.0.q.weight": square, "head.weight": other, "blocks.1.q.weight": square}
    assert renamed(offered, {"blocks.0.q.base.weight": square}) == ["blocks.0.q.weight"]
    assert not renamed(offered, {"blocks.0.q.base.weight": other, "blocks.2.q.weight": square})


def test_a_file_that_holds_no_weights_is_none_of_its_business(tmp_path: Path) -> None:
    path = program(tmp_path, "data = torch.load(HERE / 'data.pt')")
    path.write_text(path.read_text().replace('state = torch.load(HERE / "weights.pt")', ""))
    torch.save({"train.x": torch.randn(9, 9), "train.y": torch.randn(9, 1)}, tmp_path / "data.pt")
    assert ask(path).status is Status.SKIP


def test_nothing_loaded_is_a_skip_without_a_second_start(tmp_path: Path) -> None:
    path = program(tmp_path, "pass")
    path.write_text(path.read_text().replace('state = torch.load(HERE / "weights.pt")', ""))
    loop = DirectLoop(load(path), torch.device("cpu"), 0)
    loop.relaunched = None  # type: ignore[method-assign,assignment]
    assert run_check(PretrainedWeights, Audit(loop)).status is Status.SKIP


def test_a_failed_download_that_is_passed_over_warns(tmp_path: Path) -> None:
    body = """
    try:
        model.load_state_dict(torch.hub.load_state_dict_from_url("file:///nowhere/resnet18.pth",
                                                                  model_dir=str(HERE)))
    except OSError:
        pass
    """
    path = program(tmp_path, body)
    path.write_text(path.read_text().replace('state = torch.load(HERE / "weights.pt")', ""))
    result = ask(path)
    assert result.status is Status.WARN
    assert "resnet18.pth" in result.message


IGNORED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def resnet(classes, pretrained=False):
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, classes))


def train_loader():
    x = torch.randn(128, 8)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)


def build_model():
    {body}


def main():
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in train_loader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
"""


def test_a_flag_that_is_ignored_warns_in_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(IGNORED.format(body="return resnet(3, pretrained=True)"))
    for result in (ask(path), ask_script(path)):
        assert result.status is Status.WARN
        assert result.location is not None
        assert "pretrained" in path.read_text().splitlines()[result.location.line - 1]


@pytest.mark.parametrize(
    "body",
    [
        "return resnet(3, pretrained=False)",
        "return resnet(3, pretrained=True) if train_loader is None else resnet(3)",
        "m = resnet(3, pretrained=True); m[0].weight.data[:] = torch.eye(16)[:, :8]; return m",
    ],
)
def test_a_flag_that_promises_nothing_is_a_skip(tmp_path: Path, body: str) -> None:
    path = tmp_path / "train.py"
    path.write_text(IGNORED.format(body=body))
    assert ask(path).status is Status.SKIP


def test_the_watch_is_taken_down(tmp_path: Path) -> None:
    before = copy.copy((nn.Module.load_state_dict, torch.load, torch.hub.download_url_to_file))
    ask(program(tmp_path, LOST))
    assert before == (nn.Module.load_state_dict, torch.load, torch.hub.download_url_to_file)
