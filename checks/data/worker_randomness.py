"""DATA106: loader workers that draw the same random numbers."""

from __future__ import annotations

from nnaudit.checks.base import Check
from nnaudit.context import Audit
from nnaudit.loop.base import Needs
from nnaudit.probes.worker_draws import REPEATS, Draws, NoDraws, WorkerDraws
from nnaudit.report import Kind, Numbers, Result

_GLOBAL = {"torch", "numpy.random", "random"}


class WorkerRandomness(Check):
    """Does each loader worker draw its own random numbers in each epoch?

    Why: A worker is a copy of the training process. A generator created with the data set
        (`self.rng = np.random.default_rng(0)`) is copied with it: every worker draws the same
        numbers, and a new epoch starts them over. A `worker_init_fn` that seeds with a constant
        does the same to the global generators, which torch would have seeded by worker and epoch.
        The augmentation then has a fraction of its variety, and nothing shows it.
    How: Asks two real workers for the same batch of 8 items eight times, and once more in a second
        epoch. The states of the generators within reach show which one it is.
        - Fails when both workers gave the same eight results in the same order in both epochs, or
          one worker gave the same in two epochs (not asked of persistent workers, whose generators
          go on), with at least four different results each: by chance that has a probability below
          1e-4.
        - Inconclusive with fewer different results.
        - Asked only where reading an item twice gives two results.
    Fix: Draw from `torch` or `np.random`, which torch seeds by worker and epoch; or seed your own
        generator in the worker: `np.random.default_rng(torch.initial_seed())`.
    References: PyTorch documentation, "Randomness in multi-process data loading"
        (torch.utils.data). Pärnamaa, Using PyTorch + NumPy? You're making a mistake (2021).
    """

    code = "DATA106"
    name = "worker-randomness"
    kind = Kind.EXACT
    needs = (Needs.ITEMS,)
    probes = (WorkerDraws,)

    def run(self, audit: Audit) -> Result:
        """Compare the two workers, then the two epochs."""
        draws = audit.probe(WorkerDraws)
        if isinstance(draws, NoDraws):
            answer = self.inconclusive if draws.applies else self.skipped
            return answer(f"{draws.why[0].upper()}{draws.why[1:]}.")
        if not draws.varied:
            return self.skipped("Items are the same at every reading: nothing is random.")
        if draws.workers_alike and draws.telling:
            return self._found(audit, draws, across_workers=True)
        if draws.epochs_alike and not draws.persistent and draws.telling:
            return self._found(audit, draws, across_workers=False)
        if draws.workers_alike or (draws.epochs_alike and not draws.persistent):
            return self.inconclusive(
                "The transform gave too few different results to tell whether random numbers "
                "repeat."
            )
        return self.passed(
            f"Reading the same items {REPEATS} times, "
            + ("two workers and " if len(draws.epochs[0]) > 1 else "")
            + "two epochs gave different random results.",
            evidence=(_numbers(draws),),
        )

    def _found(self, audit: Audit, draws: Draws, *, across_workers: bool) -> Result:
        name = draws.generator(across_workers=across_workers)
        who = "two workers" if across_workers else "two epochs"
        message = (
            f"Reading the same items {REPEATS} times, {who} gave the same {REPEATS} random results "
            f"in the same order{_why(draws, name)}."
        )
        fix = _fix(draws, name)
        if draws.by_hand and not across_workers:
            return self.noted(
                f"{message} Call set_epoch() before each epoch.", evidence=(_numbers(draws),)
            )
        return self.failed(
            message,
            measured=f"{REPEATS} of {REPEATS} results equal",
            threshold="different results",
            evidence=(_numbers(draws),),
            location=audit.loop.locate(getattr(audit.loop.train_loader, "dataset", None))
            or audit.loop.locate("train_loader"),
            fix=fix,
        )


def _why(draws: Draws, name: str) -> str:
    if name in _GLOBAL:
        who = "worker_init_fn" if draws.initialised else "the data set"
        return f": {who} seeds {name} with the same number"
    if name:
        return f": {name} is copied unchanged into every worker"
    return ": the seed of the generator does not depend on worker and epoch"


def _fix(draws: Draws, name: str) -> str:
    seed = {"numpy.random": "np.random.seed", "random": "random.seed"}.get(name)
    if name == "torch":
        return "remove torch.manual_seed() from worker_init_fn and from the data set"
    if seed:
        return f"{seed}(torch.initial_seed() % 2**32)  # differs by worker and epoch"
    place = name.replace("dataset.", "get_worker_info().dataset.", 1) or "rng"
    return f"{place} = np.random.default_rng(torch.initial_seed())  # in worker_init_fn"


def _numbers(draws: Draws) -> Numbers:
    first, second = draws.epochs
    values: dict[str, float | str] = {
        "readings": REPEATS,
        "different results of one worker": len({made.digest for made in first[0]}),
        "equal in two epochs": _alike(first[0], second[0]),
    }
    if len(first) > 1:
        values["equal in two workers"] = _alike(first[0], first[1])
    return Numbers(title="The same items, read repeatedly", values=values)


def _alike(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    pairs = zip(one, other, strict=True)
    return sum(getattr(a, "digest", 0) == getattr(b, "digest", 1) for a, b in pairs)
