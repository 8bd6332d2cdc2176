"""Work side by side: every piece done once, on its share of the cores, first steps apart, failures told."""

import threading
import time

import pytest
import torch

from dreamlib._engine.threads import Stopped, in_order, shares, side_by_side


@pytest.fixture(autouse=True)
def threads_as_before(threads_restored):
    """Every test leaves the number of threads as it was, which is a thing it checks."""
    yield
    assert torch.get_num_threads() == threads_restored


@pytest.mark.parametrize("threads", range(1, 9))
def test_shares_cover_the_work_and_all_cores(threads):
    for count in range(7):
        for most in (1, 2, 9):
            dealt = list(shares(count, threads, most))
            assert sum(at_once for at_once, _ in dealt) == count
            assert all(at_once * each == threads and at_once <= most for at_once, each in dealt)


def test_results_come_in_order_though_the_first_ends_last():
    ended = []

    def work(item, stepped):
        stepped()
        while len(ended) < 2 - item:  # 0 waits for 1, which waits for 2
            time.sleep(0.001)
        ended.append(item)
        return item * 10

    assert side_by_side(work, [0, 1, 2], 1) == [0, 10, 20]
    assert ended == [2, 1, 0]


@pytest.mark.parametrize("threads", [1, 3])
def test_each_thread_computes_on_its_share_also_in_threads_begun_later(threads, threads_of_a_new_thread):
    assert side_by_side(lambda item, stepped: torch.get_num_threads(), range(2), threads) == [threads] * 2
    assert threads_of_a_new_thread() == torch.get_num_threads()


def test_first_steps_are_made_one_at_a_time_and_later_ones_are_not():
    inside, most, together = 0, 0, threading.Barrier(3, timeout=30)

    def work(item, stepped):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        stepped()
        together.wait()  # all three are in their second step
        stepped()

    side_by_side(work, range(3), 1)
    assert most == 1


@pytest.mark.parametrize("count", [1, 3])
def test_every_step_is_told_one_thread_at_a_time(count):
    told, inside = 0, 0

    def on_step():
        nonlocal told, inside
        inside += 1
        assert inside == 1
        seen = told
        time.sleep(0.001)  # the others may run
        told = seen + 1
        inside -= 1

    def work(item, stepped):
        for _ in range(20):
            stepped()

    side_by_side(work, range(count), 1, on_step)
    assert told == 20 * count


def test_a_failure_is_raised_and_ends_the_others():
    steps, failed = [], threading.Event()

    def work(item, stepped):
        stepped()
        if item == 1:
            failed.set()
            raise ValueError("of item 1")
        failed.wait(30)
        for step in range(100_000):
            steps.append(step)
            time.sleep(0.001)
            stepped()

    with pytest.raises(ValueError, match="of item 1"):
        side_by_side(work, range(3), 1)
    assert 1 <= len(steps) < 10_000


def test_a_failure_in_a_first_step_lets_nobody_wait():
    def work(item, stepped):
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        side_by_side(work, range(4), 1)


def test_an_interruption_ends_all(monkeypatch):
    ended = []

    def work(item, stepped):
        try:
            for _ in range(100_000):
                time.sleep(0.001)
                stepped()
        except Stopped:
            ended.append(item)
            raise

    def interrupted(*args, **options):
        time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr("dreamlib._engine.threads.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(2), 1)
    assert 1 <= len(ended) <= 2


def test_one_item_stays_in_the_calling_thread():
    assert side_by_side(lambda item, stepped: threading.current_thread(), [0], 7) == [threading.current_thread()]


def test_tasks_in_order_run_a_few_at_a_time_each_on_its_share(threads_of_a_new_thread):
    inside, most, lock, three = 0, 0, threading.Lock(), threading.Barrier(3, timeout=30)

    def task(number):
        def work():
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            if number < 3:
                three.wait()
            time.sleep(0.02 if number == 0 else 0.002)  # the first ends after some that follow
            with lock:
                inside -= 1
            return number, torch.get_num_threads()

        return work

    assert list(in_order(map(task, range(7)), 3, 2)) == [(number, 2) for number in range(7)]
    assert most == 3
    assert threads_of_a_new_thread() == torch.get_num_threads()


def test_one_task_at_a_time_is_one_after_the_other():
    trace = []

    def task(number):
        return lambda: trace.extend([("begin", number), ("end", number)])

    list(in_order(map(task, range(3)), 1, 1, concurrent_job=task("beside")))
    assert trace == [(what, which) for which in ("beside", 0, 1, 2) for what in ("begin", "end")]


def test_what_is_beside_is_waited_for_and_its_failure_raised(threads_of_a_new_thread):
    found, go = [], threading.Event()

    def beside():
        go.wait(timeout=30)
        found.append("beside")
        raise ValueError("beside")

    results = in_order([lambda: 1, lambda: 2], 2, 1, beside)
    assert [next(results), next(results)] == [1, 2] and found == [], "no result waits for it"
    go.set()
    with pytest.raises(ValueError, match="beside"):
        next(results)
    assert threads_of_a_new_thread() == torch.get_num_threads()


def test_a_failed_task_is_raised_in_its_turn_and_the_rest_never_begin(threads_of_a_new_thread):
    begun, first, hold = [], threading.Event(), threading.Event()

    def task(number):
        def work():
            begun.append(number)
            if number == 1:
                raise ValueError("the second")
            if number == 2:
                first.set()
                hold.wait(timeout=30)  # so that the others are still waiting when the failure is seen
            return number

        return work

    result = in_order(map(task, range(9)), 1, 1)
    assert next(result) == 0
    first.wait(timeout=30)
    later = threading.Timer(0.2, hold.set)
    later.start()
    with pytest.raises(ValueError, match="the second"):
        next(result)
    later.join()
    assert 8 not in begun
    assert threads_of_a_new_thread() == torch.get_num_threads()


def test_a_caller_who_closes_waits_for_no_task_that_has_not_begun(threads_of_a_new_thread):
    begun, second, go = [], threading.Event(), threading.Event()

    def work():
        begun.append(len(begun))
        if len(begun) > 1:
            second.set()
            go.wait(timeout=30)

    result = in_order([work] * 9, 1, 1)
    next(result)
    second.wait(timeout=30)
    later = threading.Timer(0.2, go.set)
    later.start()
    result.close()
    later.join()
    assert len(begun) < 9
    assert threads_of_a_new_thread() == torch.get_num_threads()
