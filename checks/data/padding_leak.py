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

    Why: Padding is there because a batch must be rectangular. If attention looks at it, a mean is
        taken over it, or the last step is read where it has long begun, then the prediction for a
        sentence depends on which others are in the batch; if it counts in the loss, much of the
        training goes into predicting nothing.
    How: Looks for right-padded sequences of which a mask, lengths or an embedding's `padding_idx`
        tell. The shorter half of a real batch is run as it is and without the columns that hold
        nothing but its padding, in eval mode: what the loader makes of these rows alone. Null
        hypothesis: outputs where there is content, and the loss, are the same. The change of the
        median output is measured in deviations between outputs, so that what a convolution or a
        backward recurrence lets seep in at the border does not count; above 0.05 it fails. If all
        outputs agree and the loss moves by over 0.1 % of itself and far beyond its noise, padding
        counts in the loss, which fails too. It only warns where no mask and no lengths are
        there, or they do not reach the model and all batches have one width, so that nothing
        varies in practice; a mere pad id at one width, and a loss divided by the padded width, are
        noted.
    Fix: `src_key_padding_mask=~mask`; `pack_padded_sequence(x, lengths)`;
        `(h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)`; `ignore_index=pad`.
    References: PyTorch documentation of torch.nn.MultiheadAttention and
        torch.nn.utils.rnn.pack_padded_sequence. Vaswani et al., Attention Is All You Need (2017).
    """

    code = "DATA114"
    name = "padding-leak"
    kind = Kind.EXACT
    needs = (Needs.TRAIN_LOADER,)
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
            return self.inconclusive("Outputs do not vary from sequence to sequence.")
        said = "outputs agree" if leak.losses is None else f"the loss stays {leak.losses[0]:.4g}"
        return self.passed(f"{_what(leak)}, {said}.", evidence=(_numbers(leak),))

    def _seeps_in(self, leak: Leak, moved: Moved) -> Result:
        return self.noted(
            f"{_what(leak)}, the median output moves by {moved.median:.2g} deviations and the "
            f"worst by {moved.most:.2g}: a little seeps in where the padding begins.",
            evidence=(_numbers(leak),),
        )

    def _output_moves(self, audit: Audit, leak: Leak, moved: Moved) -> Result:
        told = f"batch{leak.padding.told} tells" if leak.padding.told else "a padding_idx tells"
        given = "is given to the model" if leak.passed_on else "does not reach the model"
        also = f", which {told} of and which {given}" if leak.padding.told else f", which {told} of"
        return self._found(
            audit,
            leak,
            f"Padding{also}, changes what the network computes: {_what(leak).lower()}, the median "
            f"output moves by {moved.median:.2g} deviations.",
            measured=f"{moved.median:.2g} deviations",
            threshold=f"{self.option(audit, 'moved'):g}",
            fix=_fix(leak),
        )

    def _loss_moves(self, audit: Audit, leak: Leak, losses: tuple[float, float]) -> bool:
        wide, narrow = losses
        change = abs(wide - narrow)
        return change > max(self.option(audit, "loss") * abs(narrow), 10 * leak.noise)

    def _in_loss(self, audit: Audit, leak: Leak, losses: tuple[float, float]) -> Result:
        wide, narrow = losses
        message = f"{_what(leak)}, the loss is {narrow:.4g} and not {wide:.4g}"
        by_width = abs(wide * leak.width - narrow * leak.trimmed) < 1e-3 * abs(wide * leak.width)
        if by_width:
            return self.noted(f"{message}: it is divided by the padded width.")
        if leak.moved is None:
            return self.inconclusive(
                f"{message}, but whether the outputs moved could not be measured."
            )
        return self._found(
            audit,
            leak,
            f"{message}, though the outputs agree: padding counts in the loss.",
            measured=f"{abs(wide - narrow) / max(abs(narrow), 1e-12):.1%} of the loss",
            threshold=f"{self.option(audit, 'loss'):.1%}",
            fix="F.cross_entropy(logits, targets, ignore_index=pad)  # or mask the loss",
        )

    def _found(self, audit: Audit, leak: Leak, message: str, **details: Any) -> Result:
        status = _gravity(leak)
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
    return f"For {leak.rows} sequences padded to {leak.trimmed} instead of {leak.width}"


def _fix(leak: Leak) -> str:
    marker = leak.padding.marker
    if marker is not None and marker.ndim == 1:
        return "pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)"
    return "encoder(x, src_key_padding_mask=~mask)  # and pool over mask[..., None] only"


def _numbers(leak: Leak) -> Numbers:
    values: dict[str, float | str] = {
        "sequences": leak.rows,
        "width": leak.width,
        "width without needless padding": leak.trimmed,
        "outputs compared": leak.units,
    }
    if leak.moved is not None:
        values |= {
            "median change, in deviations": leak.moved.median,
            "largest change, in deviations": leak.moved.most,
        }
    if leak.losses is not None:
        values |= {"loss": leak.losses[0], "loss with less padding": leak.losses[1]}
    return Numbers(title="The same sequences with more and less padding", values=values)
