"""DATA114: padding that changes what the network computes, or counts in the loss."""

from __future__ import annotations

from typing import Any, ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.padding import Leak, Moved, NoPadding, PaddingContrast
from nnaudit.report import Kind, Numbers, Result, Status

EXACT = 1e-3
"""Deviations up to which outputs agree: other widths may be summed in another order."""


class PaddingLeak(Check):
    """Do outputs and loss stay the same however far a sequence is padded?

    Why: Padding makes a batch rectangular and means nothing. If attention looks at it, a mean is
        taken over it, or the last step is read where padding has long begun, the prediction for a
        sequence depends on the other sequences in the batch. If it counts in the loss, much of the
        training goes into predicting padding.
    How: Takes right-padded sequences whose padding is marked by a mask, by lengths or by an
        embedding's `padding_idx`. The shorter half of a real batch is run twice in eval mode: as it
        is, and without the columns that hold only padding. Outputs at real positions, and the loss,
        must be the same.
        - Fails when the median output changes by more than `moved` standard deviations of the
          outputs. (The median ignores what a convolution or a backward RNN lets in at the border.)
        - Fails when the outputs agree and the loss changes by more than `loss` of itself and far
          beyond its noise: padding counts in the loss.
        - Outputs that change fail however padding is marked where batches have different widths:
          the prediction for a row depends on the rows beside it. Where all have the same width,
          nothing varies in practice: a mask or lengths that do not reach the model are a warning, a
          mere pad id is a note.
        - A loss that changes although outputs agree only warns when nothing but a pad id marks
          padding: the end of a text may be padded with what is to be learnt. A loss divided by the
          padded width is noted.
    Fix: `src_key_padding_mask=~mask`; `pack_padded_sequence(x, lengths)`;
        `(h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)`; `ignore_index=pad`.
    References: PyTorch documentation of torch.nn.MultiheadAttention and
        torch.nn.utils.rnn.pack_padded_sequence. Vaswani et al., Attention Is All You Need (2017).
    """

    code = "DATA114"
    name = "padding-leak"
    kind = Kind.EXACT
    needs = (Needs.OWN_BATCHES,)
    probes = (PaddingContrast,)
    options: ClassVar[dict[str, float]] = {"moved": 0.05, "loss": 1e-3}

    def run(self, audit: Audit) -> Result:
        """Compare outputs, then losses."""
        leak = audit.probe(PaddingContrast)
        if isinstance(leak, NoPadding):
            answer = self.inconclusive if leak.applies else self.skipped
            return answer(f"{leak.why[0].upper()}{leak.why[1:]}.")
        if leak.moved is not None and leak.moved.median > self.option(audit, "moved"):
            return self._output_moves(audit, leak, leak.moved)
        if leak.moved is not None and leak.moved.most > EXACT:
            return self._seeps_in(leak, leak.moved)
        if leak.losses is not None and self._loss_moves(audit, leak, leak.losses):
            return self._in_loss(audit, leak, leak.losses)
        if leak.moved is None and leak.losses is None:
            return self.inconclusive("Not measured: the outputs are the same for every sequence.")
        said = (
            "the outputs do not change"
            if leak.losses is None
            else f"the loss stays at {leak.losses[0]:.4g}"
        )
        return self.passed(f"{_what(leak)}, {said}.", evidence=(_numbers(leak),))

    def _seeps_in(self, leak: Leak, moved: Moved) -> Result:
        return self.noted(
            f"{_what(leak)}, the median output changes by {moved.median:.2g} standard deviations "
            f"and the worst by {moved.most:.2g}: a small effect where the padding begins.",
            evidence=(_numbers(leak),),
        )

    def _output_moves(self, audit: Audit, leak: Leak, moved: Moved) -> Result:
        return self._found(
            audit,
            leak,
            f"Padding changes the model's outputs{_marked(leak)}. {_what(leak)}, the median output "
            f"changes by {moved.median:.2g} standard deviations.",
            certain=leak.dynamic,
            measured=f"{moved.median:.2g} standard deviations",
            threshold=f"{self.option(audit, 'moved'):g} standard deviations",
            fix=_fix(leak),
        )

    def _loss_moves(self, audit: Audit, leak: Leak, losses: tuple[float, float]) -> bool:
        wide, narrow = losses
        change = abs(wide - narrow)
        return change > max(self.option(audit, "loss") * abs(narrow), 10 * leak.noise)

    def _in_loss(self, audit: Audit, leak: Leak, losses: tuple[float, float]) -> Result:
        wide, narrow = losses
        message = f"{_what(leak)}, the loss is {narrow:.4g} instead of {wide:.4g}"
        by_width = abs(wide * leak.width - narrow * leak.trimmed) < 1e-3 * abs(wide * leak.width)
        if by_width:
            return self.noted(f"{message}: it is divided by the padded length.")
        if leak.moved is None:
            return self.inconclusive(
                f"{message}, but whether the outputs change could not be measured."
            )
        return self._found(
            audit,
            leak,
            f"{message}, although the outputs agree: padding counts in the loss.",
            measured=f"{abs(wide - narrow) / max(abs(narrow), 1e-12):.1%} of the loss",
            threshold=f"{self.option(audit, 'loss'):.1%}",
            fix="F.cross_entropy(logits, targets, ignore_index=pad)  # or mask the loss",
        )

    def _found(
        self, audit: Audit, leak: Leak, message: str, *, certain: bool = False, **details: Any
    ) -> Result:
        status = Status.FAIL if certain else _gravity(leak)
        if status is Status.NOTE:
            details = {"measured": details["measured"]}
        return self.answer(
            status,
            message,
            evidence=(_numbers(leak),),
            location=audit.loop.locate("model") or audit.loop.locate(audit.loop.model),
            **details,
        )


def _gravity(leak: Leak) -> Status:
    if leak.padding.told and (leak.passed_on or leak.dynamic):
        return Status.FAIL
    return Status.WARN if leak.padding.told or leak.dynamic else Status.NOTE


def _what(leak: Leak) -> str:
    return f"With {leak.rows} sequences padded to length {leak.trimmed} instead of {leak.width}"


def _marked(leak: Leak) -> str:
    """Say where the program marks its padding, and whether the model is told."""
    if not leak.padding.told:
        return " (it is marked by padding_idx only)"
    name = f"batch{leak.padding.told}"
    if leak.passed_on:
        return f" although {name}, which marks it, is passed to the model"
    return f", and {name}, which marks it, is not passed to the model"


def _fix(leak: Leak) -> str:
    marker = leak.padding.marker
    if marker is not None and marker.ndim == 1:
        return "pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)"
    return "encoder(x, src_key_padding_mask=~mask)  # and pool over real positions only"


def _numbers(leak: Leak) -> Numbers:
    values: dict[str, float | str] = {
        "sequences": leak.rows,
        "length": leak.width,
        "length without needless padding": leak.trimmed,
        "outputs compared": leak.units,
    }
    if leak.moved is not None:
        values |= {
            "median change, in standard deviations": leak.moved.median,
            "largest change, in standard deviations": leak.moved.most,
        }
    if leak.losses is not None:
        values |= {"loss": leak.losses[0], "loss with less padding": leak.losses[1]}
    return Numbers(title="The same sequences with more and less padding", values=values)
