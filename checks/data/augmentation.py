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
        cropped and flipped at random, so the score is too low and differs at every evaluation.
        Conversely, a seed set from the index, or a cache behind the random transform, gives an item
        the same crop in every epoch: the augmentation in the code never happens.
    How: Reads up to 32 items of each loader twice, spread over an epoch, and compares inputs and
        targets row by row for exact equality. Whether a difference is wrong is a judgement, so it
        never fails.
        - Validation: a warning when inputs differ between the readings while their labels do not. A
          note when targets differ too, or have the inputs' shape (masked words, added noise): the
          task is generated at random.
        - Training: a warning when the data set holds a random transform that is called, yet no
          input differs; a note when the transform is never called (features computed once, for
          instance).
    Fix: Use two data sets with transforms of their own: `Subset(Images(root, plain), val_indices)`;
        cache before the random transform, not after it; do not seed in `__getitem__`. If
        `__getitem__` modifies the stored data in place, work on a copy:
        `x = self.images[i].clone()`.
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
            return self.inconclusive(
                "Not measured: the loader has no index, so no item can be read twice."
            )
        return self._training(audit, found.train, found.val)

    def _validation(self, audit: Audit, val: Repeat) -> Result | None:
        if not val.inputs:
            return None
        message = f"{val.inputs} of {val.rows} validation items differ when read a second time"
        if val.targets or not val.labelled:
            return self.noted(
                f"{message}: the task seems to be generated at random. Seed it so that epochs can "
                "be compared.",
                evidence=(_numbers("Validation", val),),
            )
        return self.warned(
            f"{message}, with unchanged labels: {_reason(val)}.",
            measured=f"{val.inputs} of {val.rows} items differ",
            threshold="0 items",
            evidence=(_numbers("Validation", val),),
            location=audit.loop.locate("val_loader") or audit.loop.locate(audit.loop.val_loader),
            fix="val_set = Subset(Images(root, transform=plain), val_indices)  # nothing random"
            if val.declared
            else "x = self.images[i].clone()  # if __getitem__ changes it in place",
        )

    def _training(self, audit: Audit, train: Repeat, val: Repeat | None) -> Result:
        evidence = (_numbers("Training", train),)
        if train.inputs:
            beside = ", and validation items do not" if val is not None else ""
            return self.passed(
                f"{train.inputs} of {train.rows} training items differ when read a second "
                f"time{beside}.",
                evidence=evidence,
            )
        if not train.declared:
            return self.skipped(
                "No random transform is declared, and items are the same at every reading."
            )
        message = (
            f"{', '.join(train.declared)} {'is' if len(train.declared) == 1 else 'are'} declared, "
            f"but none of {train.rows} training items differs when read a second time"
        )
        if not train.called:
            return self.noted(f"{message}: no random transform is called.", evidence=evidence)
        return self.warned(
            f"{message}: the random numbers are the same each time.",
            measured=f"0 of {train.rows} items differ",
            threshold="at least 1 item",
            evidence=evidence,
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="do not seed in __getitem__, and cache items before the random transform, not "
            "after",
        )


def _reason(repeat: Repeat) -> str:
    if repeat.declared:
        return f"random augmentation is active in validation ({', '.join(repeat.declared)})"
    return "augmentation is active in validation, or __getitem__ modifies the stored data in place"


def _numbers(which: str, repeat: Repeat) -> Numbers:
    return Numbers(
        title=f"{which} items, read twice",
        values={
            "items": repeat.rows,
            "with a different input": repeat.inputs,
            "with a different target": repeat.targets,
        },
    )
