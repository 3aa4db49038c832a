"""DATA117: whether the training texts have something to learn from."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.token_targets import Placed, TokenTargeting, TokenTargets
from nnaudit.report import Kind, Result
from nnaudit.wording import count

_FEWEST = 32
_SOME, _MOST = 0.05, 0.5
_FILLED = 0.2
"""Share of targets that are padding from which much of the training goes into it."""


class SupervisedRows(Check):
    """Does every training text have tokens to learn, its end included?

    Why: When only answers are learnt, a maximum length that cuts them off leaves rows without any
        target: they cost a forward and a backward pass and teach nothing. And when the padding
        token is also the end of a text, ignoring the padding ignores the end: the network never
        learns to stop.
    How: Reads up to 64 batches (3 seconds) in which each token of a row has a label.
        - Fails when more than half of the rows (of at least 32) have no label other than the loss's
          ignore_index; warns above 5%.
        - Fails when, in all padded rows (at least 8) that end with one token, that token is ignored
          while the one before it is a target. It must be the last attended token of nine in ten
          padded rows, or the one that fills the padding.
        - Warns when more than a fifth of the targets that reach the loss are padding: one token to
          the end of half of the rows or more, from different places on, and nowhere else.
        - That is so where labels are the text's own tokens (language modelling): rows without a
          label may be by design in semi-supervised tagging. Of tags it warns when more than a fifth
          of those that reach the loss stand where a mask, lengths or the `padding_idx` of an
          embedding say padding.
    Fix: Raise the maximum length, or drop rows whose labels are all ignored. Give the padding a
        token of its own: `tokenizer.add_special_tokens({"pad_token": "<pad>"})`.
    References: Hugging Face documentation of DataCollatorForLanguageModeling, which ignores every
        label equal to the padding token.
    """

    code, name, kind = "DATA117", "supervised-rows", Kind.EXACT
    needs = (Needs.TRAIN_LOADER, Needs.STEPS, Needs.TARGETS)
    probes = (TokenTargeting,)

    def run(self, audit: Audit) -> Result:
        """Count the rows and the ends without a target."""
        seen = audit.probe(TokenTargeting)
        if seen is None or not seen.rows:
            return self.skipped("The inputs are no token ids with a label for each.")
        if not seen.own:
            return self._of_tags(audit, seen.placed)
        share = seen.unsupervised / seen.rows
        if seen.rows >= _FEWEST and share > _SOME:
            return self._unsupervised(audit, seen, share)
        if seen.ended >= 8 and seen.unlearnt == seen.ended:
            return self._endless(audit, seen)
        if seen.filled > _FILLED:
            return self._filled(audit, seen)
        return self.passed(
            f"{seen.rows - seen.unsupervised:,} of {seen.rows:,} rows have tokens to learn; "
            f"{100 * seen.share:.0f}% of the tokens are targets."
        )

    def _of_tags(self, audit: Audit, seen: Placed) -> Result:
        """Judge labels of another kind than the tokens: where the loss counts them."""
        if seen.padded > _FILLED:
            return self.warned(
                f"{100 * seen.padded:.0f}% of the targets stand at padding: the loss counts them "
                "like those of the text, and the network is taught what to say of padding.",
                measured=f"{100 * seen.padded:.0f}% of the targets",
                threshold=f"{100 * _FILLED:.0f}%",
                location=audit.loop.locate("loss") or audit.loop.locate("train_loader"),
                fix="pad_sequence(tags, batch_first=True, padding_value=-100)  # which the loss "
                "ignores",
            )
        if seen.content:
            return self.passed(
                f"{100 * (1 - seen.padded):.0f}% of the targets stand at tokens, not at padding."
            )
        return self.skipped("The labels are not the texts' own tokens.")

    def _unsupervised(self, audit: Audit, seen: TokenTargets, share: float) -> Result:
        answer = self.failed if share > _MOST else self.warned
        empty = f" {count(seen.empty, 'batch')[:-1]}es" if seen.empty > 1 else ""
        whole = f";{empty} of {seen.batches} have no target at all" if empty else ""
        return answer(
            f"{100 * share:.0f}% of the training rows ({seen.unsupervised:,} of {seen.rows:,}) "
            f"have no token to learn: all their labels are ignored{whole}.",
            measured=f"{100 * share:.0f}% of the rows",
            threshold=f"{100 * (_MOST if share > _MOST else _SOME):.0f}%",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="Raise the maximum length so that the answers are not cut off, or leave out the "
            "rows whose labels are all ignored.",
        )

    def _filled(self, audit: Audit, seen: TokenTargets) -> Result:
        return self.warned(
            f"{100 * seen.filled:.0f}% of the targets are padding: one token that repeats to the "
            "end of the rows counts in the loss like the text.",
            measured=f"{100 * seen.filled:.0f}% of the targets",
            threshold=f"{100 * _FILLED:.0f}%",
            location=audit.loop.locate("loss") or audit.loop.locate("train_loader"),
            fix="F.cross_entropy(logits, targets, ignore_index=pad)  # or labels of -100 there",
        )

    def _endless(self, audit: Audit, seen: TokenTargets) -> Result:
        why = " and also fills the padding, so" if seen.end == seen.padding else ", and"
        return self.failed(
            f"The end of a text is never learnt: token {seen.end} ends {seen.ended} padded rows"
            f"{why} its label is ignored in every one of them. The network will not stop.",
            measured=f"0 of {seen.ended} ends are targets",
            threshold="all",
            location=audit.loop.locate("train_loader"),
            fix="Give the padding a token of its own, or ignore labels by the attention mask: "
            "labels[attention_mask == 0] = -100.",
        )
