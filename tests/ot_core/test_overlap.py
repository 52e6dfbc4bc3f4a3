"""Work ahead and behind: in order, bounded, and never for ever."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ot_core.overlap import ByteBudget, Overlap, Threads, prefetch


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
    results = prefetch(lambda item: begun.append(item) or (item and gate.wait()), range(50), ahead=2)
    next(results)
    assert _returns(results.close), "the garbage collector may do this in a thread that holds locks of threading"
    gate.set()
    assert len(begun) <= 4


def _returns(call) -> bool:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(0.2)
    return not thread.is_alive()


def test_an_error_is_in_the_future_of_its_item():
    results = list(prefetch(lambda item: 1 // item, [1, 0, 1]))
    assert [type(future.exception()) for future in results] == [type(None), ZeroDivisionError, type(None)]


def test_what_is_finished_is_given_at_once():
    gate, ended = threading.Event(), threading.Event()
    overlap = Overlap(lambda item, _: (gate.wait, ended.set, int)[item]())
    assert not list(overlap.put(0))
    assert not list(overlap.put(1)), "it comes after one that isn't finished"
    ended.wait()
    gate.set()
    given = []
    while not given:
        given = list(overlap.put(2))
        time.sleep(0.005)
    assert given[0].result() is True
    overlap.close()


def test_closing_waits_for_what_has_begun_and_forgets_the_rest():
    gate, begun, done = threading.Event(), threading.Event(), []
    overlap = Overlap(lambda item, _: (begun.set(), gate.wait(), done.append(item)), Threads(1))
    assert not [future for item in range(3) for future in overlap.put(item)]
    begun.wait()
    closing = threading.Thread(target=overlap.close, daemon=True)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    gate.set()
    closing.join()
    assert done == [0]
    assert not list(overlap.drain())


def test_a_call_that_no_thread_has_begun_is_made_by_who_waits_for_it():
    gate, begun, busy = threading.Event(), threading.Event(), Threads(1)
    other = Overlap(lambda item, _: begun.set() or gate.wait(), busy)
    assert not list(other.put(0))
    begun.wait()
    overlap = Overlap(lambda item, _: threading.get_ident(), busy)
    assert not [future for item in range(3) for future in overlap.put(item)]
    assert [future.result() for future in overlap.drain()] == [threading.get_ident()] * 3
    gate.set()
    other.close()


def test_a_fork_has_threads_and_bytes_of_its_own():
    """While threads of this process are busy, and hold all there is, and a lock."""
    threads, budget, gate, begun = Threads(1), ByteBudget(1), threading.Event(), threading.Event()
    overlap = Overlap(lambda item, shares: shares[0].take(1) or begun.set() or gate.wait(), threads, [budget])
    assert not list(overlap.put(0))
    begun.wait()
    with budget._lock, threads._lock:
        child = os.fork()
    if not child:
        try:
            again = Overlap(lambda item, shares: shares[0].take(1) or threading.get_ident(), threads, [budget])
            results = [future.result() for future in again.put(0)] + [future.result() for future in again.drain()]
            os._exit(0 if results else 1)
        finally:
            os._exit(2)
    ended = os.waitpid(child, 0)
    gate.set()
    overlap.close()
    assert ended == (child, 0)


def test_a_process_ends_though_a_call_waits():
    program = """
import threading
from ot_core.overlap import ByteBudget, Overlap
budget = ByteBudget(1)
budget.line().share().take(1)
begun = threading.Event()
list(Overlap(lambda item, shares: begun.set() or shares[0].take(1), budgets=[budget]).put(0))
begun.wait()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(__file__).parents[2])


class TestByteBudget:
    def _take(self, line, nbytes, granted):
        """In a thread of its own; gives its share."""
        share = line.share()
        asked = threading.Thread(target=lambda: (share.take(nbytes), granted.append(nbytes)), daemon=True)
        asked.start()
        while not share.nbytes:
            time.sleep(0.001)
        return share

    def test_it_is_never_exceeded_and_all_get_their_share(self):
        budget, held, most, lock = ByteBudget(100), 0, 0, threading.Lock()

        def work(nbytes):
            nonlocal held, most
            share = budget.line().share()
            share.take(nbytes)
            with lock:
                held += nbytes
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= nbytes
            share.give_back()

        threads = [threading.Thread(target=work, args=(10 + 7 * (i % 9),), daemon=True) for i in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 50 < most <= 100

    def test_what_is_larger_is_held_alone(self):
        budget, granted = ByteBudget(100), []
        large = budget.line().share()
        large.take(1000)
        small = self._take(budget.line(), 100, granted)
        time.sleep(0.1)
        assert not granted
        large.give_back()
        _wait_for(granted, [100])
        small.give_back()

    def test_within_a_bundle_turns_are_kept_whoever_asks_first(self):
        budget, granted = ByteBudget(10), []
        line = budget.line()
        first, second, third, fourth = (line.share() for _ in range(4))
        for share, nbytes in ((fourth, 9), (third, 8)):
            threading.Thread(
                target=lambda share, nbytes: (share.take(nbytes), granted.append(nbytes)),
                args=(share, nbytes),
                daemon=True,
            ).start()
        time.sleep(0.05)
        assert not granted, "the first may want bytes still"
        second.take(0)
        first.give_back()  # without having taken any
        _wait_for(granted, [8])
        third.give_back()
        third.give_back()
        _wait_for(granted, [8, 9])

    def test_among_bundles_a_large_one_has_its_turn_among_small_ones(self):
        budget, granted = ByteBudget(10), []
        held = budget.line().share()
        held.take(5)
        many = budget.line()
        large = self._take(budget.line(), 10, granted)
        small = [self._take(many, nbytes, granted) for nbytes in (1, 2, 3)]
        time.sleep(0.05)
        assert not granted, "they fit, but came later"
        held.give_back()
        _wait_for(granted, [10])
        large.give_back()
        _wait_for(granted, [10, 1, 2, 3], in_order=False)
        for share in small:
            share.give_back()

    def test_of_a_bundle_only_the_first_queues(self):
        budget, granted = ByteBudget(10), []
        held = budget.line().share()
        held.take(10)
        one, other = budget.line(), budget.line()
        shares = [self._take(line, nbytes, granted) for line, nbytes in ((one, 6), (one, 7), (one, 8), (other, 9))]
        held.give_back()
        for share, so_far in zip((shares[0], shares[3], shares[1], shares[2]), (1, 2, 3, 4), strict=True):
            _wait_for(granted, [6, 9, 7, 8][:so_far])
            share.give_back()

    def test_who_insists_gets_it_though_others_hold_all_and_never_come_back(self):
        budget, granted = ByteBudget(10), []
        budget.line().share().take(10)
        line = budget.line()
        first, second = self._take(line, 5, granted), self._take(line, 6, granted)
        first.insist()
        _wait_for(granted, [5])
        time.sleep(0.05)
        assert granted == [5], "the one behind it hasn't insisted"
        second.insist()
        _wait_for(granted, [5, 6])

    def test_abandoned_nobody_of_the_bundle_waits_and_others_do(self):
        budget, left, granted = ByteBudget(10), [], []
        held = budget.line().share()
        held.take(10)
        line = budget.line()
        shares = [line.share() for _ in range(3)]

        def take(share):
            try:
                share.take(1)
            except RuntimeError:
                left.append(share)

        for share in shares[:2]:
            threading.Thread(target=take, args=(share,), daemon=True).start()
        other = self._take(budget.line(), 10, granted)
        line.abandon()
        take(shares[2])
        _wait_for(left, shares, in_order=False)
        assert not granted
        held.give_back()
        _wait_for(granted, [10])
        for share in (other, *shares):
            share.give_back()
        assert budget._held == 0


def _wait_for(found, expected, in_order=True):
    while len(found) < len(expected):
        time.sleep(0.001)
    assert found == expected if in_order else set(found) == set(expected)


class TestBundles:
    """Several at once, of one budget and one set of threads."""

    def _together(self, *bundles):
        """Runs functions in threads of their own, none of which may hang: the tests' limit of time tells."""
        threads = [threading.Thread(target=bundle, daemon=True) for bundle in bundles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @pytest.mark.parametrize("seed", range(4))
    def test_none_hangs_whatever_their_sizes_and_delays(self, seed):
        threads, budget, other = Threads(3), ByteBudget(50), ByteBudget(20)
        now, most, lock, results = [0], [0], threading.Lock(), {}

        def bundle(number):
            draw = random.Random(10 * seed + number)
            items = [(index, draw.choice([0, 1, 10, 40, 70]), draw.random() / 200) for index in range(120)]

            def count(nbytes):
                with lock:
                    now[0] += nbytes * (number > 0)  # the other one is abandoned
                    most[0] = max(most[0], now[0])

            def work(item, shares):
                _, nbytes, delay = item
                shares[1].take(nbytes // 3)
                time.sleep(delay)
                shares[0].take(nbytes)
                count(nbytes)
                shares[1].give_back()
                if nbytes == 10:
                    raise ValueError
                return item

            def took(future):
                item = items[len(taken)]
                assert future.exception() is not None if item[1] == 10 else future.result() == item
                taken.append(item)
                time.sleep(draw.random() / 500)
                count(-item[1])

            taken = results[number] = []
            overlap = Overlap(work, threads, [budget, other], ahead=draw.choice([1, 16, 512]))
            for item in items:
                for future in overlap.put(item):
                    took(future)
                if number == 0 and item[0] == 60:  # of the others none must notice
                    overlap.abandon()
                    return
            for future in overlap.drain():
                took(future)

        self._together(*(lambda number=number: bundle(number) for number in range(6)))
        assert [len(results[number]) for number in range(1, 6)] == [120] * 5
        assert 50 < most[0] <= 50 + 5 * 70
        while budget._held or other._held:
            time.sleep(0.001)
        assert budget._held == other._held == 0

    def test_none_needs_another_to_go_on(self):
        """As Beam has it, whose stream of elements to one bundle may be full, before the next of another comes."""
        threads, budget, done = Threads(2), ByteBudget(10), threading.Event()
        work = Overlap(lambda item, shares: shares[0].take(10), threads, [budget])
        taken = [future for item in range(8) for future in work.put(item)]

        def other():
            overlap = Overlap(lambda item, shares: shares[0].take(10) or item, threads, [budget])
            given = [future.result() for item in range(20) for future in overlap.put(item)]
            given += [future.result() for future in overlap.drain()]
            assert given == list(range(20))
            done.set()

        self._together(other)
        assert done.is_set()
        assert len([*taken, *work.drain()]) == 8

    def test_one_thread_may_have_two_of_them(self):
        threads, budget, given = Threads(2), ByteBudget(10), []

        def work(item, shares):
            shares[0].take(10)
            return item

        outer, inner = (Overlap(work, threads, [budget], ahead=4) for _ in range(2))

        def both():
            for item in range(30):
                for future in outer.put(item):
                    given.extend(result.result() for result in inner.put(future.result()))
            for future in outer.drain():
                given.extend(result.result() for result in inner.put(future.result()))
            given.extend(result.result() for result in inner.drain())

        self._together(both)
        assert given == list(range(30))
