"""Work side by side: in order, errors passed on, and no more of it than is asked for."""

from __future__ import annotations

import time

import pytest

from ram_tune.data.threads import in_threads


def test_results_come_in_the_order_of_the_items():
    assert list(in_threads(lambda item: (time.sleep(0.01 * (item < 3)), item)[1], range(20))) == list(range(20))


def test_who_stops_asking_waits_only_for_what_is_under_way():
    done = []
    results = in_threads(lambda item: (time.sleep(0.01), done.append(item)), range(2000))
    next(results)
    results.close()
    assert len(done) < 1000
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 / item, range(-3, 3)))
