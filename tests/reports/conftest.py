"""Reports to render: one that looks like a real audit, one that attacks its reader."""

from __future__ import annotations

import base64
import math
import random
import struct
import zlib

import pytest

from nnaudit.report import (
    Curve,
    Environment,
    Histogram,
    Image,
    Images,
    Kind,
    Location,
    Numbers,
    Overview,
    Part,
    Report,
    Result,
    Section,
    Series,
    Source,
    Status,
    Table,
    TargetInfo,
    Text,
    Tool,
    totals_of,
)

HOSTILE = (
    "[red]x[/red] \x1b[31mred\x1b[0m \x00\x07 \u202eevil\u202c \ufeff \ud800 "
    "<script>alert(1)</script> ]]> --> \"quoted\" 'single' & {{ 7*7 }} {% raw %} `<b>`"
)


def png(width: int, height: int, seed: int = 0) -> str:
    """Return a small grey PNG with a bright blob, in base64, without an imaging library."""
    noise = random.Random(seed)
    cx, cy = noise.uniform(0.3, 0.7) * width, noise.uniform(0.3, 0.7) * height
    rows = b""
    for y in range(height):
        distances = (math.hypot(x - cx, y - cy) for x in range(width))
        rows += b"\0" + bytes(min(255, max(0, int(255 - 34 * d))) for d in distances)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def result(code: str = "TEST101", status: Status = Status.PASS, **fields) -> Result:
    """Return a result with the least that a result must have."""
    plain = {"name": "some-check", "family": "TEST", "kind": Kind.EXACT, "message": "A message."}
    return Result(code=code, status=status, **(plain | fields))


def report(*results: Result, **fields) -> Report:
    """Return a report of ``results`` with the least that a report must have."""
    plain = {
        "tool": Tool(version="0.1.0", seed=0, preset="full"),
        "environment": Environment(),
        "target": TargetInfo(name="train.py"),
        "totals": totals_of(results, steps=214, seconds=12.4),
    }
    return Report(results=results, **(plain | fields))


def _curve(name: str, start: float, floor: float, n: int = 60, noise: float = 0.02) -> Series:
    rng = random.Random(name)
    ys = [floor + (start - floor) * math.exp(-4 * i / n) + rng.gauss(0, noise) for i in range(n)]
    return Series(name=name, x=tuple(range(n)), y=tuple(ys))


def _findings() -> tuple[Result, ...]:
    double = Result(
        code="LOSS101",
        name="double-activation",
        family="LOSS",
        kind=Kind.EXACT,
        question="Is the loss given what it expects: logits or probabilities?",
        status=Status.FAIL,
        message="The network ends in a softmax and `cross_entropy` applies another one, so the "
        "loss cannot fall below 1.461.",
        measured="512 of 512 rows are non-negative and sum to 1",
        threshold="at most 99 % of the rows",
        evidence=(
            Curve(
                title="Loss on one batch that is fed again and again",
                x_label="step",
                y_label="loss",
                series=(
                    _curve("as written", 2.31, 1.48),
                    _curve("without the softmax", 2.36, 0.02),
                ),
                thresholds={"floor": 1.461, "ln 10": 2.303},
            ),
            Numbers(title="Rows of the output", values={"rows": 512, "lowest sum": 0.9999998}),
        ),
        location=Location(file="examples/mnist/net.py", line=42),
        source=Source(
            first=40,
            lines=(
                "        self.head = nn.Sequential(",
                "            nn.Linear(128, 10),",
                "            nn.Softmax(dim=1),",
                "        )",
                "",
            ),
        ),
        module="net.head.softmax",
        fix="Return the logits: delete `nn.Softmax(dim=1)` in line 42.",
        steps=12,
        seconds=0.41,
    )
    overfit = Result(
        code="FIT101",
        name="tiny-subset-overfit",
        family="FIT",
        kind=Kind.STATISTICAL,
        question="Can the network learn 16 examples by heart?",
        status=Status.FAIL,
        message="It closes 38 % of the way to a loss of zero on 16 examples.",
        measured="38 % at the author's learning rate, 41 % at x10",
        threshold="at least 90 %",
        cause="LOSS101",
        evidence=(
            Curve(
                title="Loss on 16 examples",
                x_label="step",
                y_label="loss",
                series=tuple(_curve(f"learning rate x{f}", 2.3, 1.48) for f in ("0.1", "1", "10")),
                thresholds={"target": 0.23},
                log_y=True,
            ),
        ),
        fix="Mend the cause first.",
        steps=180,
        seconds=8.2,
    )
    crash = Result(
        code="MODE105",
        name="checkpoint-round-trip",
        family="MODE",
        kind=Kind.EXACT,
        question="Does a checkpoint restore the run exactly?",
        status=Status.ERROR,
        message="RuntimeError: Error(s) in loading state_dict for Net",
        evidence=(
            Text(
                title="Traceback",
                text="Traceback (most recent call last):\n"
                + "".join(
                    f'  File "train.py", line {i}, in f{i}\n    f{i + 1}()\n' for i in range(9)
                )
                + "RuntimeError: Error(s) in loading state_dict for Net: missing key head.weight\n",
            ),
        ),
        location=Location(file="train.py", line=88),
        crash="user",
        seconds=0.02,
    )
    return double, overfit, crash


def _judgements() -> tuple[Result, ...]:
    warning = Result(
        code="DATA110",
        name="class-balance",
        family="DATA",
        kind=Kind.STATISTICAL,
        question="Are the classes about equally frequent?",
        status=Status.WARN,
        message="The most frequent class is 34 times as frequent as the rarest.",
        measured="34 to 1",
        threshold="at most 10 to 1",
        evidence=(
            Table(
                title="Targets by class",
                columns=("class", "name", "count", "share"),
                rows=tuple((i, f"class {i}", 1700 // (i + 1), 0.5 / (i + 1)) for i in range(6)),
            ),
            Histogram(
                title="Target",
                x_label="class",
                edges=tuple(range(11)),
                counts=(3400, 1200, 800, 620, 410, 333, 250, 180, 120, 100),
            ),
        ),
        fix="Report balanced accuracy beside accuracy.",
        seconds=0.08,
    )
    note = result(
        "NORM102",
        Status.NOTE,
        name="redundant-bias",
        family="NORM",
        message="Three convolutions have a bias right before a BatchNorm, which removes it.",
        fix="`nn.Conv2d(..., bias=False)`",
        module="net.conv1, net.conv2, net.conv3",
    )
    return warning, note


def _quiet() -> tuple[Result, ...]:
    names = ("finite-values", "target-domain", "batch-alignment", "shuffling", "epoch-coverage")
    passed = tuple(
        result(
            f"DATA10{i}",
            name=name,
            family="DATA",
            question="Is every value finite?",
            message="4,096 values were looked at.",
            steps=3,
        )
        for i, name in enumerate(names, start=1)
    )
    ladder = result(
        "FIT105",
        name="subset-ladder",
        family="FIT",
        kind=Kind.JUDGEMENT,
        message="The network fits up to 256 examples.",
        evidence=(
            Curve(
                title="Loss by number of examples",
                x_label="examples",
                y_label="final loss",
                series=(Series(name="loss", x=(16, 64, 256, 1024), y=(0.001, 0.004, 0.05, 0.61)),),
                log_x=True,
                log_y=True,
            ),
        ),
    )
    return (
        *passed,
        ladder,
        result(
            "SEED101",
            Status.INCONCLUSIVE,
            name="seeded-run",
            message="The budget of 60 s ran out after one of two runs.",
        ),
        result(
            "DATA108",
            Status.SKIP,
            name="split-leakage",
            message="The target has no validation set.",
        ),
        result(
            "DATA109", Status.SKIP, name="split-shift", message="The target has no validation set."
        ),
        result("GRAD104", Status.SKIP, name="causality", message="Not a next-token model."),
    )


def _overview() -> Overview:
    rng = random.Random(7)
    counts = tuple(
        int(2000 * math.exp(-((i - 15) ** 2) / 40)) + rng.randrange(30) for i in range(31)
    )
    edges = tuple(-0.31 + 0.02 * i for i in range(32))
    tiles = tuple(Image(png=png(28, 28, i), caption=f"label {i % 10}") for i in range(12))
    layers = tuple(
        Histogram(title=f"Weights of {name}", x_label="weight", edges=edges, counts=counts)
        for name in ("conv1", "conv2", "fc")
    )
    return Overview(
        sections=(
            Section(
                title="One batch, as it enters the network",
                text="Decoded from the tensor that `net` was called with.",
                evidence=(Images(title="First 12 of 64", images=tiles),),
            ),
            Section(title="Weights by layer", evidence=layers),
        )
    )


def realistic_report() -> Report:
    """Return a report with every status, every type of evidence and a cause."""
    results = (*_quiet(), *_findings(), *_judgements())
    return Report(
        tool=Tool(
            version="0.1.0",
            command="nnaudit examples/mnist/train.py --preset full --seed 0 -- --epochs 1",
            seed=0,
            preset="full",
            budget=60,
        ),
        environment=Environment(
            python="3.12.4",
            torch="2.8.0",
            torchvision="0.23.0",
            numpy="2.1.0",
            platform="Linux-6.1-x86_64",
            device="cpu",
            threads=2,
        ),
        target=TargetInfo(
            name="train.py",
            path="examples/mnist/train.py",
            form="script",
            parts=(
                Part(
                    name="model",
                    description="Net, 1,199,882 parameters",
                    origin="user",
                    location=Location(file="examples/mnist/train.py", line=120),
                ),
                Part(name="optimizer", description="AdamW, lr 0.001", origin="default"),
                Part(
                    name="validation set",
                    description="",
                    origin="absent",
                    disables=("DATA108", "DATA109"),
                ),
            ),
        ),
        results=results,
        overview=_overview(),
        totals=totals_of(results, steps=214, seconds=12.43),
    )


def hostile_report() -> Report:
    """Return a report in which every string is an attack, and numbers are not finite."""
    h = HOSTILE
    nan, inf = math.nan, math.inf
    evidence = (
        Numbers(title=h, values={h: nan, "b": inf, "c": h}),
        Curve(
            title=h,
            x_label=h,
            y_label=h,
            series=(
                Series(name=h, x=(0, 1, 2, 3, nan), y=(1, nan, inf, -2, 5)),
                Series(name="empty", x=(), y=()),
                Series(name="nothing finite", x=(0, 1), y=(nan, nan)),
            ),
            thresholds={h: 0.5, "endless": inf},
            remark=h,
        ),
        Curve(
            title=h,
            x_label=h,
            y_label=h,
            series=(Series(name=h, x=(0, 1, nan), y=(1, inf, -2)), Series(name=h, x=(), y=())),
            bars=True,
            shares=True,
        ),
        Histogram(title=h, x_label=h, edges=(-inf, 0, 1, inf), counts=(3, 2, 1)),
        Histogram(title=h, x_label=h, edges=(), counts=()),
        Images(title=h, images=(Image(png='"><script>', caption=h), Image(png="AAAA", caption=h))),
        Table(title=h, columns=(h, "b"), rows=((h, nan), (1e300, -inf), ("short",))),
        Text(title=h, text=h + "\n" + "x" * 100_000),
    )
    results = tuple(
        Result(
            code=h if status is Status.NOTE else f"HOST{number}",
            name=h,
            family=h,
            kind=Kind.EXACT,
            question=h,
            status=status,
            message=h + "y" * (1_000_000 if status is Status.FAIL else 3_000),
            measured=h,
            threshold=h,
            evidence=evidence,
            location=Location(file=h, line=1),
            source=Source(first=1, lines=(h, "z" * 300)),
            explanation={h: h},
            url='https://e.example/"><script>alert(1)|</script>'
            if number % 2
            else "javascript:a(1)",
            module=h,
            fix=h,
            cause=h,
        )
        for number, status in enumerate(Status)
    )
    return Report(
        tool=Tool(version=h, command=h, seed=0, preset=h),
        environment=Environment(python=h, device=h),
        target=TargetInfo(
            name=h,
            path=h + "p",
            form=h,
            parts=(Part(name=h, description=h, origin="absent", disables=(h,)),),
        ),
        results=results,
        overview=Overview(sections=(Section(title=h, text=h, evidence=evidence),)),
        totals=totals_of(results, steps=0, seconds=nan),
    )


@pytest.fixture(scope="session")
def realistic() -> Report:
    return realistic_report()


@pytest.fixture(scope="session")
def hostile() -> Report:
    return hostile_report()


@pytest.fixture
def make_result():
    return result


@pytest.fixture
def make_report():
    return report
