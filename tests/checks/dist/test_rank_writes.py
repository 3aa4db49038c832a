from __future__ import annotations

from support.ranks import of_ranks

from nnaudit.checks.dist.rank_writes import RankWrites
from nnaudit.ranks.record import Wrote
from nnaudit.report import Status


def test_a_file_of_several_ranks_fails() -> None:
    rank = [Wrote(path="/run/best.pt", step=8)]
    result = of_ranks(RankWrites, rank, rank)
    assert result.status is Status.FAIL
    assert result.message == "best.pt is written by 2 ranks (0, 1)."


def test_a_file_for_each_rank_passes() -> None:
    one, other = ([Wrote(path=f"/run/{rank}.pt", step=8)] for rank in range(2))
    assert of_ranks(RankWrites, one, other).status is Status.PASS


def test_what_is_written_before_the_training_is_not_judged() -> None:
    rank = [Wrote(path="/run/config.json", step=0)]
    assert of_ranks(RankWrites, rank, rank).status is Status.SKIP
