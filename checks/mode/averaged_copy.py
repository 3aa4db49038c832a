"""MODE108: whether a moving average follows the network, statistics included."""

from __future__ import annotations

from typing import Any, ClassVar

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.measure.seeding import source_files
from nnaudit.measure.synced_network import Cause, UnsyncedNetwork, second_names, unused_averages
from nnaudit.probes.averaged_copies import AveragedCopies, AveragedCopy
from nnaudit.probes.self_updates import SelfUpdate, SelfUpdates
from nnaudit.probes.validated_weights import ValidatedAverage, ValidatedWeights
from nnaudit.report import Kind, Result
from nnaudit.targets.source import source_of
from nnaudit.wording import count

_TOWARD = 0.9


class AveragedCopyStatistics(Check):
    """Does a moving average follow the network that is trained, statistics included?

    Why: An average of the weights (EMA, SWA, a mean teacher) over `parameters()` leaves the buffers
        as they were when the copy was made: means and variances of batch normalisation. In eval
        mode the averaged network normalises by the statistics of another network, and scores far
        below what it could. With `value = value * decay + ...` a name is bound anew and the average
        stays what it was at first; with decay and 1 - decay exchanged it is the last weights.
    How: Looks for networks in memory with the same parameters and buffers as the trained one (names
        and shapes) that no optimizer holds, and takes three steps. A copy whose weights move toward
        the trained ones (cosine of at least 0.9) is an average. Then ends the epoch, validation
        included.
        - Fails when the statistics changed in the trained network but not one bit of them in the
          average, and validation called the average in eval mode.
        - Warns when validation did not call it, or the end of an epoch cannot be reached; and of
          torch's AveragedModel without `use_buffers` before its first update.
        - Notes a program that recomputes the statistics before use (`update_bn`).
        - Fails when every step leaves the same share of the distance between average and network,
          above 0 and below `forgets` (0.1: an average over one step); where every step leaves less
          than the one before, it takes up to 60 steps to see where that ends. A decay that grows,
          as in a warm-up, and a copy of the weights as they are, pass.
        - Fails when every step moves a copy straight away from the trained weights (cosine below
          -0.99 in all of them): the sign of the update is wrong, and the distance grows.
        - Fails when a statement of the program moves trained weights toward themselves and no
          others, in three steps: what it is to average is bound to the network itself, by
          `self.target = self.network` or `{n: p.data for ...}`, and is no copy. Weight decay by
          hand (`p.add_(p, alpha=-lr * decay)`) and networks that share some weights pass.
          So it does by the source where `target = policy` is followed by a line that loads the
          state of the one into the other, or goes through the weights of both; and where torch's
          AveragedModel is made and `update_parameters` is called nowhere.
        - Fails when validation calls a copy of the network and never the network itself, and not
          one bit of the copy's weights changes in some 150 steps and between two epochs.
        - Warns of a target network that the steps call and that stands still, where the source
          copies it once and no statement can update it. A reference may be meant to stay. So it
          does of one that is to be updated every so many steps and is not in twice as many; and of
          a copy that the steps call and that stands still where the source has a function that
          updates it and is never called, or a loop that binds a name anew (`k = m * k + ...`).
        - An average that is kept in a dict or a list, and copied into the network for validation,
          is found by its values, and judged in the same way.
        - Warns when validation uses an average that keeps the same share of itself in each step,
          and by the end of the run, where its length is known, more than `start` (0.5) of what it
          began with: such a decay is made for a longer run.
        - Fails when weights of an average stand still, bit for bit, whose trained ones went far
          enough to be seen, while its others follow; modules that nothing calls do not count.
        - A copy whose statistics follow, by copying or by its own forward pass in train mode,
          passes. One that stands still beside a network that is validated too (a teacher, a
          reference) is not judged.
    Fix: `for average, b in zip(ema.buffers(), model.buffers()): average.copy_(b)`.
    References: PyTorch documentation of torch.optim.swa_utils.AveragedModel (use_buffers) and
        update_bn; Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
        Generalization" (2018), section 3.2.
    """

    code, name, kind = "MODE108", "averaged-copy", Kind.EXACT
    needs = (Needs.OWN_STEPS,)
    probes = (AveragedCopies, ValidatedAverage, SelfUpdates)
    options: ClassVar[dict[str, float]] = {"forgets": 0.1, "start": 0.5}

    def run(self, audit: Audit) -> Result:
        """Judge the copies that follow the trained network, and those that should."""
        copies = audit.probe(AveragedCopies)
        loaded = audit.probe(ValidatedAverage)
        averages = [each for each in copies if each.alignment >= _TOWARD or each.by_torch]
        updated = audit.probe(SelfUpdates)
        wrong = (
            (None if updated is None else self._itself(updated))
            or self._by_the_source(audit)
            or self._standing(audit, copies)
            or (None if loaded is None else self._loaded(audit, loaded))
            or self._of_copies(audit, averages)
        )
        if wrong is not None:
            return wrong
        if not averages and (loaded is None or loaded.alignment < _TOWARD):
            return self.skipped("No moving average of the network was found.")
        return self.passed(
            "The average of the network follows it"
            + (
                ", running statistics included."
                if any(copy.statistics for copy in averages)
                else "."
            )
        )

    def _standing(self, audit: Audit, copies: tuple[AveragedCopy, ...]) -> Result | None:
        """Return what to say of a copy that stands still where it should not, or moves away."""
        for copy in copies:
            if copy.away:
                return self._moves_away(audit, copy)
            if copy.stood:
                return self._stands_still(audit, copy)
            if copy.unsynced is not None:
                return self._unsynced(copy.unsynced)
        return None

    def _of_copies(self, audit: Audit, averages: list[AveragedCopy]) -> Result | None:
        """Return what is wrong with networks that are averages."""
        for copy in averages:
            if copy.decay is not None and 0.0 < copy.decay < self.option(audit, "forgets"):
                return self._forgets(audit, copy.type, copy.source, copy.decay)
        for copy in averages:
            if copy.behind:
                return self._behind(audit, copy)
        for copy in averages:
            if copy.stale and copy.stale == copy.statistics:
                return self._stale(audit, copy)
        slow = (
            self._slow(audit, copy.type, copy.decay, copy.updates)
            for copy in averages
            if copy.evaluated and copy.decay is not None
        )
        return next((each for each in slow if each is not None), None)

    def _loaded(self, audit: Audit, average: ValidatedWeights) -> Result | None:
        """Return what is wrong with an average that is in the network while it is validated."""
        where = audit.loop.locate("val_loader") or audit.loop.locate("model")
        if average.stood:
            return self.failed(
                f"For validation the network is given weights that are kept in a {average.held}, "
                f"and not one of them changed in {count(average.stood, 'step')} and between two "
                "epochs: it scores the weights as they were when that was made.",
                measured=f"0 of {count(average.weights, 'tensor')} changed",
                threshold="an average that moves toward the trained weights",
                location=where,
                fix="update the average in place after every step, under torch.no_grad(): "
                "average[name].mul_(decay).add_(weight, alpha=1 - decay)",
            )
        if average.alignment < _TOWARD:
            return None
        if average.decay is not None and 0.0 < average.decay < self.option(audit, "forgets"):
            return self._forgets(audit, average.held, "", average.decay)
        if average.stale and average.stale == average.statistics:
            return self.failed(
                f"The average of the network (kept in a {average.held}) follows its weights, but "
                f"not its buffers: {count(average.stale, 'running statistic')} changed in training "
                "and were bit for bit the same in two validations, which use the average with "
                "them.",
                measured=f"{average.stale} of {average.statistics} statistics unchanged",
                threshold="0",
                location=where,
                fix="average the buffers, too, or copy them: for name, b in model.named_buffers(): "
                "average[name].copy_(b)",
            )
        if average.decay is None:
            return None
        return self._slow(audit, average.held, average.decay, average.updates)

    def _slow(self, audit: Audit, held: str, decay: float, updates: int) -> Result | None:
        """Return what to say of an average that the run is too short for."""
        share = decay**updates if updates else 0.0
        if share <= self.option(audit, "start"):
            return None
        return self.warned(
            f"The average of the network ({held}) keeps {decay:.6g} of itself in each step: after "
            f"the {updates:,} steps of the run {share:.0%} of it are still the weights that it "
            "began with, and validation uses it.",
            measured=f"{share:.0%} of the first weights",
            threshold=f"at most {self.option(audit, 'start'):.0%}",
            location=audit.loop.locate("val_loader") or audit.loop.locate("model"),
            fix="decay = min(decay, (1 + step) / (10 + step))  # short at first, and grows",
        )

    def _itself(self, update: SelfUpdate) -> Result:
        return self.failed(
            f"This statement is to move an average or a target network toward the trained weights, "
            f"and moves {count(update.weights, 'trained weight tensor')} toward themselves: the "
            "two are one and the same network, not a copy. Nothing is averaged, and in two parts "
            "(`mul_`, then `add_`) the update shrinks the weights.",
            measured=f"{count(update.weights, 'tensor')} updated from themselves",
            threshold="an average in memory of its own",
            location=update.location,
            fix="average = copy.deepcopy(model), or {n: p.detach().clone() for n, p in "
            "model.named_parameters()}",
        )

    def _by_the_source(self, audit: Audit) -> Result | None:
        """Fail where the source shows that what is to follow the network cannot."""
        sources = [source_of(file) for file in source_files(audit.loop)]
        for network in (each for source in sources for each in second_names(source)):
            return self.failed(
                f"{network.name} is no second network, but the trained one by another name: "
                "what is to follow it is always the same as it.",
                measured="one network with two names",
                threshold="a copy",
                location=network.location,
                fix=f"{network.name} = copy.deepcopy(network)",
            )
        for network in unused_averages(sources):
            return self.failed(
                f"{network.name} is an AveragedModel that nothing updates: it stays a copy of the "
                "weights as they were when it was made.",
                measured="no call of update_parameters()",
                threshold="one after each epoch, or after each step",
                location=network.location,
                fix=f"{network.name}.update_parameters(model)",
            )
        return None

    def _moves_away(self, audit: Audit, copy: AveragedCopy) -> Result:
        return self.failed(
            f"A copy of the network ({copy.type}) moves straight away from the trained weights in "
            "every step, so that the distance between the two grows without end: the sign of its "
            "update is wrong.",
            measured="away from the trained weights in every step",
            threshold="toward them",
            module=copy.source,
            location=audit.loop.locate("model"),
            fix="average.lerp_(weight, 1 - decay)  # average += (1 - decay) * (weight - average)",
        )

    def _stands_still(self, audit: Audit, copy: AveragedCopy) -> Result:
        return self.failed(
            f"Validation calls a copy of the network ({copy.type}), never the network that is "
            f"trained, and not one of the copy's weights changed in {copy.stood} steps and between "
            "two epochs: it scores the weights as they were when the copy was made.",
            measured=f"0 of {count(copy.weights, 'tensor')} changed",
            threshold="an average that moves toward the trained weights",
            module=copy.source,
            location=audit.loop.locate("model"),
            fix="update the copy in place after every step, under torch.no_grad(): "
            "average.mul_(decay).add_(weight, alpha=1 - decay)",
        )

    def _unsynced(self, network: UnsyncedNetwork) -> Result:
        name, period = network.name, network.period
        said, fix = {
            Cause.NEVER: (
                f"{name} is copied from the trained network once, and no statement updates it: "
                "the steps are taken toward what the untrained network says.",
                f"{name}.load_state_dict(network.state_dict())  # every few hundred steps",
            ),
            Cause.PERIOD: (
                f"{name} is to be updated every {period} optimizer steps, and was not in more than "
                "twice as many: the counter begins anew before it gets there.",
                "count the updates of the whole run, not of an episode",
            ),
            Cause.REBOUND: (
                f"The loop over the parameters of {name} binds its variable anew, which changes no "
                "parameter: the copy of the trained network that the steps call stands still.",
                "in place, under torch.no_grad(): average.mul_(m).add_(weight, alpha=1 - m)",
            ),
            Cause.UNCALLED: (
                f"{name} would update a network from another, and is never called: the copy of the "
                "trained network that the steps call stands still.",
                f"call {name} after every optimizer step",
            ),
        }[network.cause]
        return self.warned(
            said,
            measured="0 updates",
            threshold="a copy of the weights now and then, or a moving average of them",
            location=network.location,
            fix=fix,
        )

    def _forgets(self, audit: Audit, held: str, source: str, decay: float) -> Result:
        return self.failed(
            f"The average of the network ({held}) keeps only {decay:.2g} of itself in every "
            f"step and takes {1 - decay:.4g} from the trained weights: it is the last step's "
            "weights, and no average.",
            measured=f"decay {decay:.2g}",
            threshold=f"at least {self.option(audit, 'forgets'):g}",
            module=source,
            location=audit.loop.locate("model"),
            fix="exchange the two factors: "
            f"average.mul_({1 - decay:.4g}).add_(weight, alpha={decay:.2g})",
        )

    def _behind(self, audit: Audit, copy: AveragedCopy) -> Result:
        parts = tuple(dict.fromkeys(name.rpartition(".")[0] for name in copy.behind))
        return self.failed(
            f"The average of the network ({copy.type}) follows it in "
            f"{copy.weights - len(copy.behind)} of {count(copy.weights, 'tensor')}: the others "
            f"({copy.behind[0]} first) did not change by one bit, while the trained ones did. "
            "Its parts do not belong together.",
            measured=f"{count(len(copy.behind), 'tensor')} unchanged",
            threshold="0",
            module=parts[0],
            location=audit.loop.locate("model"),
            fix="go through all parameters: for average, p in zip(ema.parameters(), "
            "model.parameters()): average.lerp_(p, 1 - decay)",
        )

    def _stale(self, audit: Audit, copy: AveragedCopy) -> Result:
        follows = "follows" if copy.moved else "is made to follow"
        what = (
            f"The average of the network ({copy.type}) {follows} its weights, but not its buffers: "
            f"{count(copy.stale, 'running statistic')} changed in the trained network and "
            "stayed bit for bit the same in the average"
        )
        if copy.recomputed:
            return self.noted(f"{what}; the program recomputes them later (update_bn).")
        details: dict[str, Any] = {
            "measured": f"{copy.stale} of {copy.statistics} statistics unchanged",
            "threshold": "0",
            "module": copy.source,
            "location": audit.loop.locate("model"),
            "fix": "for average, b in zip(ema.buffers(), model.buffers()): average.copy_(b)",
        }
        if copy.by_torch:
            details["fix"] = (
                "torch.optim.swa_utils.update_bn(train_loader, averaged) before it is used, or "
                "AveragedModel(model, use_buffers=True)"
            )
        if copy.evaluated and copy.moved:
            return self.failed(f"{what}. Validation uses the average with them.", **details)
        return self.warned(f"{what}.", **details)
