"""DATA107: augmentation that does not act in training, or does in validation."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.refetch import Refetch, Repeat
from nnaudit.report import Kind, Numbers, Result


class Augmentation(Check):
    """Are training items augmented where that is declared, and validation items not?

    Why: A split of one data set with `random_split` shares its transform: validation images are
        cropped and flipped at random, the score is too low and another each time. And a seed that
        is set by index, or a cache behind the random transform, gives an item the same crop in
        every epoch: the augmentation that the code shows never happens.
    How: Looks up to 32 items of each loader up, all over an epoch, twice, and compares inputs and
        targets row by row. A warning for validation data when inputs vary while their labels do
        not; where targets vary too, or are of the inputs' shape (masked words, added noise), the
        task is made up on the spot and it is a note. A warning for training data when the data set
        holds a random transform that is called and the inputs come out the same nevertheless; a
        note when it is not called (features that were computed once). Equality is exact; that it
        is wrong is a judgement, so it never fails.
    Fix: Two data sets with transforms of their own: `Subset(Images(root, plain), val_indices)`;
        cache before the random transform; do not seed in `__getitem__`.
    References: PyTorch documentation, torch.utils.data.random_split. Shorten and Khoshgoftaar, A
        Survey on Image Data Augmentation for Deep Learning (2019).
    """

    code = "DATA107"
    name = "augmentation"
    kind = Kind.JUDGEMENT
    needs = (Needs.TRAIN_LOADER,)
    probes = (Refetch,)

    def run(self, audit: Audit) -> Result:
        """Judge the validation data first, then the training data."""
        found = audit.probe(Refetch)
        worst = self._validation(audit, found.val) if found.val is not None else None
        if worst is not None:
            return worst
        if found.train is None:
            return self.inconclusive("The loader has no index, so no item can be read twice.")
        return self._training(audit, found.train, found.val)

    def _validation(self, audit: Audit, val: Repeat) -> Result | None:
        if not val.inputs:
            return None
        message = f"{val.inputs} of {val.rows} validation items change when they are read again"
        if val.targets or not val.labelled:
            return self.noted(
                f"{message}, and the task is made up on the spot: seed it to compare epochs.",
                evidence=(_numbers("Validation", val),),
            )
        return self.warned(
            f"{message}, and their labels do not{_named(val)}.",
            measured=f"{val.inputs} of {val.rows} vary",
            threshold="0",
            evidence=(_numbers("Validation", val),),
            location=audit.loop.locate("val_loader") or audit.loop.locate(audit.loop.val_loader),
            fix="val_set = Subset(Images(root, transform=plain), val_indices)  # nothing random",
        )

    def _training(self, audit: Audit, train: Repeat, val: Repeat | None) -> Result:
        evidence = (_numbers("Training", train),)
        if train.inputs:
            beside = ", validation items do not" if val is not None else ""
            return self.passed(
                f"{train.inputs} of {train.rows} training items change when they are read "
                f"again{beside}.",
                evidence=evidence,
            )
        if not train.declared:
            return self.skipped("No random transform is declared, and no item changes.")
        message = (
            f"{', '.join(train.declared)} "
            f"{'is' if len(train.declared) == 1 else 'are'} declared, but none of {train.rows} "
            "training items changes when it is read again"
        )
        if not train.called:
            return self.noted(f"{message}: no such transform is called.", evidence=evidence)
        return self.warned(
            f"{message}: the random numbers are the same each time.",
            measured=f"0 of {train.rows} vary",
            threshold="some",
            evidence=evidence,
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="# do not seed in __getitem__, and cache what comes before the random transform",
        )


def _named(repeat: Repeat) -> str:
    return f": {', '.join(repeat.declared)}" if repeat.declared else ""


def _numbers(which: str, repeat: Repeat) -> Numbers:
    return Numbers(
        title=f"{which} items, read twice",
        values={
            "items": repeat.rows,
            "with another input": repeat.inputs,
            "with another target": repeat.targets,
        },
    )
