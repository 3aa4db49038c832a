"""Finding a target in a file, and saying what is wrong with a file that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import SOURCE
from torch import nn

from nnaudit.errors import TargetError
from nnaudit.targets import target as targets


def file(folder: Path, text: str, name: str = "net.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_parts_are_found_by_name_and_located(tmp_path: Path) -> None:
    path = file(tmp_path, SOURCE)
    found = targets.load(path)
    assert found.name == "net"
    assert isinstance(found.model(), nn.Module)
    assert (
        found.locations["loss"].line
        == SOURCE.splitlines().index("def loss_fn(output, target):") + 1
    )
    assert found.val_loader is None


def test_objects_do_too(tmp_path: Path) -> None:
    text = SOURCE + "\nmodel = build_model()\ndel build_model\noptimizer = build_optimizer(model)\n"
    found = targets.load(file(tmp_path, text))
    assert isinstance(found.model, nn.Module)
    again = found.reload()
    assert again.model is not found.model


def test_a_factory_of_the_loss_is_told_by_its_name(tmp_path: Path) -> None:
    text = SOURCE.replace("def loss_fn(output, target):", "def unused(output, target):")
    text += "\nfrom torch import nn\ndef build_loss():\n    return nn.MSELoss()\n"
    assert isinstance(targets.load(file(tmp_path, text)).loss, nn.MSELoss)


def test_an_imported_module_of_a_parts_name_is_no_part(tmp_path: Path) -> None:
    text = SOURCE.replace("build_model", "make_net") + "\nimport json as model\n"
    assert callable(targets.load(file(tmp_path, text)).model)


def test_a_marked_function_wins(tmp_path: Path) -> None:
    text = SOURCE + (
        "\nimport nnaudit\n@nnaudit.target\ndef mine():\n"
        "    return nnaudit.Target(model=build_model, train_loader=train_loader, name='mine')\n"
    )
    assert targets.load(file(tmp_path, text)).name == "mine"


def test_a_marked_function_must_return_a_target(tmp_path: Path) -> None:
    text = "import nnaudit\n@nnaudit.target\ndef mine():\n    return 3\n"
    with pytest.raises(TargetError, match=r"mine\(\).*int"):
        targets.load(file(tmp_path, text))


def test_a_marked_function_that_fails_is_the_users(tmp_path: Path) -> None:
    text = "import nnaudit\n@nnaudit.target\ndef mine():\n    return nnaudit.Target(modell=3)\n"
    with pytest.raises(TargetError, match=r"py:4: mine\(\) failed: TypeError: .*'modell'"):
        targets.load(file(tmp_path, text))


def test_a_lone_model_class_is_taken(tmp_path: Path) -> None:
    text = (
        "from torch import nn\nclass Block(nn.Module):\n    def __init__(self, n):\n"
        "        super().__init__()\nclass Net(nn.Module):\n    pass\n"
    )
    assert targets.load(file(tmp_path, text)).model.__name__ == "Net"


def test_siblings_can_be_imported(tmp_path: Path) -> None:
    file(tmp_path, "from torch import nn\nlayer = nn.Linear(1, 1)\n", "sibling_of_net.py")
    path = file(tmp_path, "from sibling_of_net import layer\nmodel = layer\n")
    assert isinstance(targets.load(path).model, nn.Linear)


def test_a_file_named_like_a_module_hides_nothing(tmp_path: Path) -> None:
    targets.load(file(tmp_path, SOURCE, "random.py"))
    import random

    assert hasattr(random, "SystemRandom")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", r"net\.py:1: syntax error"),
        ("x = 1\n", "build_model"),
        ("import torch\nx = 1\n", "nnaudit init"),
        (f"import no_such_module\n{SOURCE}", r"net\.py:1: .*no_such_module"),
        (f"{SOURCE}\nraise ValueError('oh\\nno')\n", "ValueError: oh"),
        (f"{SOURCE}\nimport sys\nsys.exit(3)\n", r"sys\.exit\(3\).*__main__"),
        ("build_model = 3\n", "model is a int"),
        (f"{SOURCE}\nloss_fn = 3\n", "loss is a int"),
        ("\0", "null bytes"),
        (
            "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, n): ...\n",
            "without arguments",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        targets.load(file(tmp_path, text))
    assert "\n" not in str(caught.value)
    raised = "no_such_module" in text or "raise" in text  # by code of the user's
    assert caught.value.exit_code == (4 if raised else 2)


def test_what_is_no_python_file(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, "folder"),
        (tmp_path / "missing.py", "no such file"),
        (file(tmp_path, "hello", "notes.txt"), "not a Python file"),
    ):
        with pytest.raises(TargetError, match=said):
            targets.load(path)
