"""DATA117: whether the training texts have something to learn from."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.token_targets import TokenTargeting, TokenTargets
from nnaudit.report import Kind, Result
from nnaudit.wording import count

_FEWEST = 32
_SOME, _MOST = 0.05, 0.5


class SupervisedRows(Check):
    """Does every training text have tokens to learn, its end among them?

    Why: Where prompts are not learnt, a maximum length that cuts the answer off leaves a row of
        which no token is a target: it costs a forward and a backward pass and teaches nothing. And
        where the padding token is also the end of a text and padding is ignored, the end is
        ignored with it: the network never learns to stop.
    How: Exact counts over up to 64 batches (3 seconds) in which each token of a row has a label:
        rows without a label other than the loss's ignore_index. More than half of at least 32 is a
        failure, more than 5 % a warning. Where a batch has a mask, the last token that it attends
        to is compared with the token that fills the padding: if they are the same in all padded
        rows (at least 8), and that last token is a target in none of them while the one before is
        in all, it fails. Classes per row, where an ignored label is a row without one by design,
        and inputs that are no token ids are not judged.
    Fix: raise the maximum length, or drop rows whose labels are all ignored; and give the padding a
        token of its own: tokenizer.add_special_tokens({"pad_token": "<pad>"})
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
        share = seen.unsupervised / seen.rows
        if seen.rows >= _FEWEST and share > _SOME:
            return self._unsupervised(audit, seen, share)
        if seen.ended >= 8 and seen.unlearnt == seen.ended:
            return self._endless(audit, seen)
        return self.passed(
            f"{seen.rows - seen.unsupervised:,} of {seen.rows:,} rows have tokens to learn."
        )

    def _unsupervised(self, audit: Audit, seen: TokenTargets, share: float) -> Result:
        answer = self.failed if share > _MOST else self.warned
        empty = f" {count(seen.empty, 'batch')[:-1]}es" if seen.empty > 1 else ""
        whole = f";{empty} of {seen.batches} have no target at all" if empty else ""
        return answer(
            f"{100 * share:.0f} % of the training rows ({seen.unsupervised:,} of {seen.rows:,}) "
            f"have no token to learn: all their labels are ignored{whole}.",
            measured=f"{100 * share:.0f} % of the rows",
            threshold=f"{100 * (_MOST if share > _MOST else _SOME):.0f} %",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="Raise the maximum length so that the answers are not cut off, or leave out the "
            "rows whose labels are all ignored.",
        )

    def _endless(self, audit: Audit, seen: TokenTargets) -> Result:
        return self.failed(
            f"The end of a text is never learnt: token {seen.padding} ends all {seen.ended} padded "
            "rows and also fills the padding, so its label is ignored in every one of them.",
            measured=f"0 of {seen.ended} ends are targets",
            threshold="all",
            location=audit.loop.locate("train_loader"),
            fix="Give the padding a token of its own, or ignore labels by the attention mask: "
            "labels[attention_mask == 0] = -100.",
        )
