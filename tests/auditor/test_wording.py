from nnaudit.wording import attribute, count, verb


def test_count_takes_the_right_number():
    assert [count(n, "step") for n in (0, 1, 1200)] == ["0 steps", "1 step", "1,200 steps"]


def test_verbs_agree_with_the_number():
    assert [verb(n, "are", "is") for n in (0, 1, 2)] == ["are", "is", "are"]
    assert [verb(n, "differ") for n in (1, 2)] == ["differs", "differ"]


def test_paths_read_like_python():
    assert attribute("model.0.2.bias") == "model[0][2].bias"
    assert attribute("model.block1.weight") == "model.block1.weight"
