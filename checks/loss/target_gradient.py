"""LOSS108: whether gradients stay out of what a loss takes for the truth."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.target_gradients import Flow, TargetGradient, TargetGradients
from nnaudit.report import Kind, Result
from nnaudit.wording import count


class TargetGradientOfLoss(Check):
    """Do gradients stay out of the targets, the teacher and the advantage?

    Why: What a loss takes for the truth is to be met, not moved. Without stop-gradient a target
        such as `r + gamma * q(next)` is also drawn to the prediction, a teacher is trained to agree
        with its student, and the policy's loss teaches the critic to make advantages large. All of
        these losses fall, often faster than the right ones.
    How: Follows the autograd graph of two steps, from what is back-propagated. It warns where, in
        both steps:
        - all that is back-propagated are squared differences or cosines of two outputs that both
          have a gradient, one computed from another set of trained tensors than the other (an
          encoder and its predictor, a target behind a trained normalisation): that both are
          constant solves it. Two views that pass through the same tensors, whitening, and any
          other term, of data or of spread, pass;
        - a regression (torch's losses, or a square written by hand) compares an output of a network
          with data plus a factor times another output of the same network, and both sides have a
          gradient. Two views that are compared as they are (a Siamese network), an output that is
          corrected by itself, and a target made under `no_grad()` or by another network pass;
        - the target of a loss of probabilities (`kl_div`, `cross_entropy`, `binary_cross_entropy`)
          is computed by layers of another network than its input, has a gradient, and no loss
          reaches that network in another way. Networks that teach each other, and each have a loss
          of their own, one network compared with itself, and labels that are learnt pass;
        - a logarithm (of a probability) is multiplied by data minus an output, both with a
          gradient, and a regression trains that output, as a critic's.
        It does not fail: residual-gradient methods send gradients into both sides on purpose.
    Fix: `with torch.no_grad(): target = reward + gamma * network(next_state).max(1).values`;
        `advantage.detach()` in the policy's loss.
    References: Mnih et al., "Human-level control through deep reinforcement learning" (2015);
        Baird, "Residual Algorithms" (1995); Hinton, Vinyals and Dean, "Distilling the Knowledge in
        a Neural Network" (2015); Mnih et al., "Asynchronous Methods for Deep Reinforcement
        Learning" (2016); Chen and He, "Exploring Simple Siamese Representation Learning" (2021).
    """

    code, name, kind = "LOSS108", "target-gradient", Kind.JUDGEMENT
    needs = (Needs.OWN_STEPS,)
    probes = (TargetGradients,)

    def run(self, audit: Audit) -> Result:
        """Judge what was seen, the first first."""
        found = audit.probe(TargetGradients)
        if not found:
            return self.passed("No gradient flows into the target of a loss.")
        return self._named(found[0])

    def _named(self, seen: TargetGradient) -> Result:
        tensors = count(seen.parameters, "trained tensor")
        said, fix = _WORDS[seen.flow]
        return self.warned(
            said.format(kind=seen.kind or "squared-error", tensors=tensors),
            measured=f"gradients into {tensors}",
            threshold="no gradient in the target",
            location=seen.location,
            fix=fix,
        )


_WORDS = {
    Flow.ATTRACTION: (
        "The whole loss draws two outputs of the network together ({kind}), and both have a "
        "gradient ({tensors} on the one side): it is smallest where both are constant, whatever "
        "the input.",
        "detach the side that is the target, as in cosine_similarity(p, z.detach())",
    ),
    Flow.BOOTSTRAP: (
        "The target of a {kind} loss is data plus a factor times another output of the network "
        "that is trained, and has a gradient ({tensors}): each step also moves the target toward "
        "the prediction.",
        "with torch.no_grad(): target = reward + gamma * network(next_state).max(1).values",
    ),
    Flow.TEACHER: (
        "The target of a {kind} loss is computed by another network, into which the gradient flows "
        "({tensors}), and no other loss trains that network: the teacher learns to agree with its "
        "student.",
        "with torch.no_grad(): target = teacher(x).softmax(1); and give the optimizer the "
        "student's parameters alone",
    ),
    Flow.ADVANTAGE: (
        "A log-probability is multiplied by an advantage that has a gradient ({tensors}): the "
        "policy's loss also trains the critic, to make advantages large.",
        "policy_loss = -(log_prob * advantage.detach()).mean()",
    ),
}
