from __future__ import annotations

import pytest
from support.ranks import calls, of_ranks

from nnaudit.checks.dist.rank_writes import RankWrites
from nnaudit.ranks.record import Read, Wrote
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


@pytest.mark.parametrize(("meetings", "status"), [(1, Status.WARN), (2, Status.SKIP)])
def test_what_is_read_while_it_may_be_written_warns(meetings: int, status: Status) -> None:
    one = [Wrote(path="/run/meta.json", step=0, meetings=1)]
    result = of_ranks(RankWrites, one, [Read(path="/run/meta.json", meetings=meetings)])
    assert (result.status, result.code) == (status, "DIST108")
    if status is Status.WARN:
        assert "Rank 1 reads meta.json, which rank 0 writes, and" in result.message


def test_what_a_rank_reads_of_its_own_or_ranks_that_meet_in_groups_is_not_judged() -> None:
    wrote, read = Wrote(path="/run/a", step=0), Read(path="/run/a")
    assert of_ranks(RankWrites, [wrote], [wrote, read]).status is Status.SKIP
    groups = calls("all_reduce", group=(0,))
    assert of_ranks(RankWrites, [wrote, *groups], [read, *groups]).status is Status.SKIP
