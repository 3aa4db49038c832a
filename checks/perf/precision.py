"""PERF103: whether the GPU's fast arithmetic is used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.precision import LOW, Precision, PrecisionUse
from nnaudit.report import Kind, Result, Table
from nnaudit.wording import count, verb

AMPERE = (8, 0)
"""From this compute capability on there is TensorFloat-32."""

_MULTIPLE = 8
"""Tensor cores take 16-bit matrices in blocks of 8; others are padded, or computed elsewhere."""

_WIDE = 64
"""Layers narrower than this take no time worth saving."""


@dataclass(frozen=True)
class Hardware:
    """What the GPU offers and what torch uses of it: read once, so that rules can be tested."""

    capability: tuple[int, int]
    exact_float32: bool


class PrecisionChoice(Check):
    """Does the training use the fast arithmetic of its GPU?

    Why: Tensor cores multiply 16-bit and TensorFloat-32 matrices several times faster than 32-bit
        ones. By default torch multiplies 32-bit matrices in full precision, which training rarely
        needs; and 16-bit matrices whose sizes are not multiples of 8 fall back to slower kernels.
    How: On CUDA only, and only as a note. One step is watched for autocast regions and for the
        precision of the layers. Networks under a million parameters are not judged: arithmetic is
        not what takes their time.
        - From compute capability 8.0 on: 32-bit layers with torch.get_float32_matmul_precision() at
          "highest" and no autocast.
        - In 16 bits: layers of width 64 or more whose sizes are not multiples of 8.
    Fix: torch.set_float32_matmul_precision("high"), or with torch.autocast("cuda", torch.bfloat16):
    References: PyTorch documentation, "CUDA semantics", TensorFloat-32; NVIDIA, Deep Learning
        Performance documentation, tensor core requirements.
    """

    code, name, kind = "PERF103", "precision", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (PrecisionUse,)

    def run(self, audit: Audit) -> Result:
        """Read the hardware, then judge."""
        if audit.loop.device.type != "cuda" or torch.version.hip:
            return self.skipped("The training does not run on a CUDA device.")
        hardware = Hardware(
            torch.cuda.get_device_capability(audit.loop.device),
            torch.get_float32_matmul_precision() == "highest",
        )
        return self.judge(audit.loop.model, audit.probe(PrecisionUse), hardware)

    def judge(self, model: nn.Module, used: Precision, hardware: Hardware) -> Result:
        """Decide from what was read."""
        size = sum(p.numel() for p in model.parameters())
        low = bool(used.autocasts & set(LOW)) or any(p.dtype in LOW for p in model.parameters())
        if size < 1_000_000:
            return self.passed(f"With {size:,} parameters arithmetic is not what takes the time.")
        if not low:
            if hardware.capability >= AMPERE and hardware.exact_float32:
                return self.noted(
                    "All matrices are multiplied in full 32-bit precision, on a GPU that "
                    "multiplies TensorFloat-32 and bfloat16 several times faster.",
                    fix='call torch.set_float32_matmul_precision("high"), or run the forward pass '
                    'within torch.autocast("cuda", dtype=torch.bfloat16)',
                )
            return self.passed("32-bit matrices are multiplied as fast as this GPU can.")
        awkward = _awkward(model)
        if awkward:
            name, sizes = awkward[0]
            return self.noted(
                f"{count(len(awkward), '16-bit layer')} {verb(len(awkward), 'have', 'has')} sizes "
                f"that are not multiples of {_MULTIPLE}, which tensor cores only take padded: "
                f"{name} has {sizes[0]} inputs and {sizes[1]} outputs.",
                fix=f"round sizes up to multiples of {_MULTIPLE}, a vocabulary to a multiple of 64",
                module=name,
                evidence=(
                    Table(
                        title=f"Layers with sizes that are not multiples of {_MULTIPLE}",
                        columns=("layer", "inputs", "outputs"),
                        rows=tuple((each, *sizes) for each, sizes in awkward[:12]),
                    ),
                ),
            )
        return self.passed("Layers compute in 16 bits, with sizes that suit tensor cores.")


def _awkward(model: nn.Module) -> list[tuple[str, tuple[int, int]]]:
    found: list[tuple[str, tuple[int, int]]] = []
    for name, module in model.named_modules():
        sizes = (0, 0)
        if isinstance(module, nn.Linear):
            sizes = (module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            sizes = (module.in_channels, module.out_channels)
        if min(sizes) >= _WIDE and any(size % _MULTIPLE for size in sizes):
            found.append((name, sizes))
    return found
