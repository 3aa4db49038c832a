"""GRAD109: whether each token is trained on its own target, or on the next token."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.label_shift import LabelShift
from nnaudit.probes.token_targets import TokenTargeting
from nnaudit.report import Kind, Result


class TargetOffset(Check):
    """Is the target of each token the next token, or its own label?

    Why: Many models shift the labels themselves. Labels that the data set or the collate function
        has shifted already are then shifted twice: each token is trained to predict the one after
        the next. The loss falls, more slowly, and generated text is garbled. Labels of words, made
        before a first token ([CLS]) was put in front, are those of the token before.
    How: Compares the targets that reach the loss function in the first step with the token ids that
        the network gets, at distances of 0 to 4. A distance counts when every target that is not
        ignored (at least 64) equals the token that far ahead, and no other distance fits.
        - Fails when the targets are two or more tokens ahead and no loss of the step is of the next
          token (several tokens may be predicted by design).
        - A distance of 0 is left to GRAD104.
        - Warns where the labels are kinds (2 to 64 of them): every text begins with the same token,
          whose labels differ, and a table of tokens and labels, made of half of the texts, tells
          those of the other half by a token beside, but not by the label's own (under 30% and over
          70% of the errors of the most frequent label). Labels that depend on what stands around
          a token do not leave its own without any.
    Fix: Give the model unshifted labels (`labels = input_ids`), or shift them once.
    References: Hugging Face documentation, GPT2LMHeadModel, labels: "the labels are shifted inside
        the model".
    """

    code, name, kind = "GRAD109", "target-offset", Kind.EXACT
    needs = (Needs.OWN_BATCHES, Needs.OWN_STEPS)
    probes = (TokenTargeting,)

    def run(self, audit: Audit) -> Result:
        """Judge the distance from inputs to targets."""
        seen = audit.probe(TokenTargeting)
        if seen is not None and seen.shift is not None:
            return self._beside(audit, seen.shift)
        if seen is None or not seen.offsets:
            return self.skipped("The targets are not the inputs' own tokens at one distance.")
        if min(seen.offsets) < 2:
            return self.passed(f"The targets are {_ahead(min(seen.offsets))}.")
        ahead = min(seen.offsets)
        return self.failed(
            f"The labels are shifted {ahead} times: every target that reaches the loss is the "
            f"token {ahead} places ahead of its input, not the next one.",
            measured=f"targets are {_ahead(ahead)}",
            threshold=_ahead(1),
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="Shift the labels once: the model shifts them itself, so give it labels=input_ids.",
        )

    def _beside(self, audit: Audit, shift: LabelShift) -> Result:
        side = "after" if shift.offset > 0 else "before"
        return self.warned(
            f"The labels belong to other tokens: the token {abs(shift.offset)} place(s) {side} "
            f"each label corrects {100 * shift.explained:.0f}% of the errors of always the most "
            f"frequent label, its own {max(100 * shift.own, 0):.0f}%, and the token that begins "
            f"every text ({shift.first}) has labels of several kinds.",
            measured=f"labels of the token {abs(shift.offset)} {side}",
            threshold="each token's own label",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="labels = [-100] + labels + [-100]  # one for [CLS], one for [SEP]",
        )


def _ahead(tokens: int) -> str:
    return f"{tokens} token{'' if tokens == 1 else 's'} ahead"
