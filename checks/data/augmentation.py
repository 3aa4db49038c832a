"""DATA107: augmentation that does not act in training, does in validation, or parts the pairs."""

from __future__ import annotations

from typing import ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.seeding import Seeding
from nnaudit.probes.moved_pictures import LeftBehind, MovedPictures
from nnaudit.probes.refetch import Refetch, Repeat
from nnaudit.report import Kind, Numbers, Result


class Augmentation(Check):
    """Are training items augmented as they should be, targets with them, and validation items not?

    Why: A split of one data set with `random_split` shares its transform: validation images are
        cropped and flipped at random, so the score is too low and differs at every evaluation.
        Conversely, a seed set from the index, or a cache behind the random transform, gives an item
        the same crop in every epoch: the augmentation in the code never happens. And a picture that
        is flipped without its mask or its boxes teaches the network that they are elsewhere.
    How: Reads up to 32 items of each loader twice, spread over an epoch, and compares inputs and
        targets row by row for exact equality. Whether these differences are wrong is a judgement.
        - Moved pictures: reads up to 24 training items five times each. Where one picture is the
          mirror image of another reading's, or turned, to the pixel, its mask must be moved in the
          same way, and its coordinates must differ. Fails when `left` of them or more are not, and
          validation shows that such targets are where their pictures have something: masks that go
          with the picture more than with the moved one (a sign test, p < 1e-4), coordinates that go
          with where the picture's weight lies (a rank correlation of 0.5, p < 1e-6). Else it warns
          for masks, and says nothing of numbers, which may be no coordinates. Coordinates that are
          moved along the other axis fail likewise: those that stay go with the picture's weight
          along the axis of the move, those that change do not (below 0.25). So do four numbers a
          row that are upright boxes in all validation items, and of which a move makes the left
          side the right one.
        - Validation: a warning when inputs differ between the readings while their labels do not. A
          note when targets differ too, or have the inputs' shape (masked words, added noise): the
          task is generated at random. So it is when the items themselves stay and the collate
          function draws something to go with them (sampled neighbours of a node).
        - Training: a warning when the data set holds a random transform that is called, yet no
          input differs, or when inputs differ only where calls that seed a global generator for
          each item do nothing; a note when the transform is never called (features computed once,
          for instance).
    Fix: Use two data sets with transforms of their own: `Subset(Images(root, plain), val_indices)`;
        cache before the random transform, not after it; do not seed in `__getitem__`; give mask,
        boxes and key points to the transform together with the picture.
    References: PyTorch documentation, torch.utils.data.random_split. Shorten and Khoshgoftaar, A
        Survey on Image Data Augmentation for Deep Learning (2019).
    """

    code = "DATA107"
    name = "augmentation"
    kind = Kind.EXACT
    needs = (Needs.ITEMS,)
    probes = (Refetch, MovedPictures)
    consequence_of = ("DATA116",)
    options: ClassVar[dict[str, float]] = {"left": 3.0}

    def run(self, audit: Audit) -> Result:
        """Judge the validation data first, then the training data."""
        for each in audit.probe(MovedPictures):
            if (parted := self._parted(audit, each)) is not None:
                return parted
        found = audit.probe(Refetch)
        worst = self._validation(audit, found.val) if found.val is not None else None
        if worst is not None:
            return worst
        if found.train is None:
            return self.inconclusive(
                "Not measured: the loader has no index, so no item can be read twice."
            )
        return self._training(audit, found.train, found.val)

    def _parted(self, audit: Audit, seen: LeftBehind) -> Result | None:
        """Say that targets stay where they are while their pictures move."""
        if seen.inverted >= self.option(audit, "left"):
            return self._inverted(audit, seen)
        if seen.left < self.option(audit, "left") or not (seen.follows or seen.mask):
            return None
        what = "mask" if seen.mask else "coordinates"
        answer = self.failed if seen.follows else self.warned
        return answer(
            f"Augmentation moves the picture and not its {what}: in {seen.left} of {seen.moved} "
            f"readings of which the picture is moved (most often {seen.move}), the {what} "
            f"(item{seen.target}) {'does' if seen.mask else 'do'} not move with it.",
            measured=f"{seen.left} of {seen.moved} targets do not follow",
            threshold="0",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="draw once, and move both: if torch.rand(()) < 0.5: image, mask = image.flip(-1), "
            "mask.flip(-1)"
            if seen.mask
            else "move both: image = image.flip(-1); boxes[:, [0, 2]] = width - boxes[:, [2, 0]]; "
            "torchvision.transforms.v2 does so for tv_tensors",
        )

    def _inverted(self, audit: Audit, seen: LeftBehind) -> Result:
        """Say that the sides of boxes change places when their picture is moved."""
        return self.failed(
            f"Augmentation turns boxes inside out: in {seen.inverted} of {seen.moved} readings of "
            f"which the picture is moved (most often {seen.move}), the right side of a box "
            f"(item{seen.target}) is left of its left side, or its bottom above its top.",
            measured=f"{seen.inverted} of {seen.moved} with sides exchanged",
            threshold="0",
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix="boxes[:, [0, 2]] = width - boxes[:, [2, 0]]  # and the sides change places",
        )

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
        if val.sampled:
            return self.noted(
                f"{message}: the collate function draws a part of them at random, as sampled "
                "neighbours or negatives. Seed it so that epochs can be compared.",
                evidence=(_numbers("Validation", val),),
            )
        return self.warned(
            f"{message}, with unchanged labels: {_reason(val)}.",
            measured=f"{val.inputs} of {val.rows} items differ",
            threshold="0 items",
            evidence=(_numbers("Validation", val),),
            location=audit.loop.locate("val_loader") or audit.loop.locate(audit.loop.val_loader),
            fix="val_set = Subset(Images(root, transform=plain), val_indices)  # nothing random",
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
        if not train.declared and train.seeding is not None and train.unseeded:
            return self._seeded(train, train.seeding)
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

    def _seeded(self, train: Repeat, seeding: Seeding) -> Result:
        return self.warned(
            f"Items are the same at every reading, because {seeding.function}() is called for each "
            f"(line {seeding.location.line}): without it {train.unseeded} of {train.rows} differ. "
            "Each item is augmented in the same way in every epoch.",
            measured=f"0 of {train.rows} items differ, {train.unseeded} without the seed",
            threshold="at least 1 item",
            evidence=(_numbers("Training", train),),
            location=seeding.location,
            fix="do not seed in __getitem__: workers get seeds of their own from the DataLoader",
        )


def _reason(repeat: Repeat) -> str:
    if repeat.declared:
        return f"random augmentation is active in validation ({', '.join(repeat.declared)})"
    return "augmentation, or something else that is random, is active in validation"


def _numbers(which: str, repeat: Repeat) -> Numbers:
    return Numbers(
        title=f"{which} items, read twice",
        values={
            "items": repeat.rows,
            "with a different input": repeat.inputs,
            "with a different target": repeat.targets,
        },
    )
