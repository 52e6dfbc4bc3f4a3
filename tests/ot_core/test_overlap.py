"""Work ahead and behind: in order, bounded, and never for ever."""

import threading
import time

from ot_core.overlap import ByteBudget, Overlap, prefetch


def test_results_come_in_order_whoever_is_ready_first():
    def slow_first(item: int) -> int:
        time.sleep(0.05 if item % 5 == 0 else 0)
        return item * 10

    assert [future.result() for future in prefetch(slow_first, range(30), ahead=4)] == [10 * i for i in range(30)]


def test_no_more_than_ahead_are_begun_before_one_is_taken():
    begun = []
    results = prefetch(lambda item: begun.append(item) or time.sleep(0.2), range(50), ahead=4)
    next(results)
    assert len(begun) <= 6
    results.close()
    assert len(begun) <= 6


def test_results_that_nobody_takes_are_not_waited_for():
    gate, begun = threading.Event(), []
    results = prefetch(lambda item: begun.append(item) or gate.wait(), range(50), ahead=2)
    next(results)
    assert _returns(results.close), "the garbage collector may do this in a thread that holds locks of threading"
    gate.set()
    assert len(begun) <= 4


def test_an_error_is_in_the_future_of_its_item():
    results = list(prefetch(lambda item: 1 // item, [1, 0, 1]))
    assert [type(future.exception()) for future in results] == [type(None), ZeroDivisionError, type(None)]


def test_what_is_finished_is_given_at_once():
    gate = threading.Event()
    overlap = Overlap(lambda item: item or gate.wait(), ahead=8)
    assert not list(overlap.put(0))
    assert not list(overlap.put(1)), "it comes after one that isn't finished"
    gate.set()
    overlap._waiting[0].result()
    assert [future.result() for future in overlap.put(2)][:2] == [True, 1]
    overlap.close()


def test_the_budget_is_never_exceeded_and_all_get_their_share():
    budget, held, most, lock = ByteBudget(100), 0, 0, threading.Lock()

    def work(nbytes: int) -> None:
        nonlocal held, most
        budget.take(nbytes)
        with lock:
            held += nbytes
            most = max(most, held)
        time.sleep(0.001)
        with lock:
            held -= nbytes
        budget.give_back(nbytes)

    threads = [threading.Thread(target=work, args=(10 + 7 * (i % 9),), daemon=True) for i in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 50 < most <= 100


def test_what_is_larger_than_the_budget_is_held_alone():
    budget, taken = ByteBudget(100), threading.Event()
    budget.take(1000)

    def take_all() -> None:
        budget.take(100)
        taken.set()

    threading.Thread(target=take_all, daemon=True).start()
    assert not taken.wait(0.2)
    budget.give_back(1000)
    assert taken.wait()
    assert not _returns(lambda: budget.take(1))


def test_turns_are_kept_whoever_asks_first():
    budget, order = ByteBudget(10), []

    def take(turn: int) -> None:
        budget.take(6, turn)
        order.append(turn)

    threads = [threading.Thread(target=take, args=(turn,), daemon=True) for turn in (2, 1, 0)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for expected in ([0], [0, 1], [0, 1, 2]):
        while len(order) < len(expected):
            time.sleep(0.005)
        assert order == expected
        budget.give_back(6)


def test_abandoned_nobody_waits():
    budget = ByteBudget(1)
    budget.take(1)
    thread = threading.Thread(target=budget.take, args=(1, 5), daemon=True)
    thread.start()
    budget.abandon()
    thread.join()


def _returns(call) -> bool:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(0.2)
    return not thread.is_alive()


def test_closing_waits_for_what_has_begun_and_forgets_the_rest():
    gate, begun, done = threading.Event(), threading.Event(), []
    overlap = Overlap(lambda item: (begun.set(), gate.wait(), done.append(item)), ahead=1)
    first, second = [future for item in range(3) for future in overlap.put(item)]
    begun.wait()
    closing = threading.Thread(target=overlap.close, daemon=True)
    closing.start()
    while not second.cancelled():
        time.sleep(0.005)
    assert closing.is_alive()
    gate.set()
    closing.join()
    assert first.done()
    assert done == [0]
    assert not list(overlap.drain())
