"""One thread alone, or many at once."""

import threading
import time

from ddeq.reductions.turns import Turns


def test_many_share_and_one_is_alone():
    turns, inside, most, alone_with = Turns(), set(), [], []
    together = threading.Barrier(3, timeout=10)

    def share(number):
        with turns.shared():
            inside.add(number)
            together.wait()  # three at once
            most.append(len(inside))
            inside.discard(number)

    def alone():
        with turns.alone(), turns.alone():  # again, by the same thread
            alone_with.append(len(inside))
            with turns.shared():
                alone_with.append(len(inside))

    threads = [threading.Thread(target=share, args=(k,)) for k in range(3)] + [threading.Thread(target=alone) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert max(most) == 3
    assert alone_with == [0, 0, 0, 0]


def test_an_error_gives_the_turn_away():
    turns, order = Turns(), []
    try:
        with turns.alone():
            raise KeyError
    except KeyError:
        order.append("raised")

    def wait_for_it():
        with turns.alone():
            order.append("alone")

    with turns.shared():
        other = threading.Thread(target=wait_for_it)
        other.start()
        time.sleep(0.05)
        order.append("shared")
    other.join(10)
    assert order == ["raised", "shared", "alone"]
