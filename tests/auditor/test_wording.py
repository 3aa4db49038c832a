from nnaudit.wording import count, verb


def test_count_takes_the_right_number():
    assert [count(n, "step") for n in (0, 1, 1200)] == ["0 steps", "1 step", "1,200 steps"]


def test_verbs_agree_with_the_number():
    assert [verb(n, "are", "is") for n in (0, 1, 2)] == ["are", "is", "are"]
    assert [verb(n, "differ") for n in (1, 2)] == ["differs", "differ"]
