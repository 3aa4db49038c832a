import time

from nnaudit.training.stopwatch import Stopwatch


def test_waiting_counts_for_a_third():
    watch, started = Stopwatch(), time.perf_counter()
    time.sleep(0.3)
    assert 0.09 < watch.seconds < 0.6 * (time.perf_counter() - started)


def test_computing_counts_whole():
    watch = Stopwatch()
    used = time.process_time()
    while time.process_time() - used < 0.05:
        pass
    assert watch.seconds >= 0.045
