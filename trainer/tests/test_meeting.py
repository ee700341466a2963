"""How the processes meet: all of them, or none goes on."""

import datetime
import threading
import time

import pytest
import torch.distributed as dist

from training import distributed
from training.distributed import World
from training.signals import Stop

SIZE = 3


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(distributed, "MEET_WITHIN", datetime.timedelta(seconds=20))
    monkeypatch.setattr(distributed, "MEET_WITHIN_WHEN_STOPPED", datetime.timedelta(seconds=1))
    return dist.HashStore()


class Process(threading.Thread):
    def __init__(self, store, rank):
        super().__init__(daemon=True)
        self.world = World(rank=rank, size=SIZE, local_rank=rank, node=0, gpu=False, stop=Stop())
        self.store = store
        self.start()

    def run(self):
        self.met = distributed._all_came(self.store, self.world)


def meet(store, *ranks):
    return [Process(store, rank) for rank in ranks]


def ends(processes):
    for process in processes:
        process.join(timeout=10)
    return [process.met for process in processes]


def test_those_who_all_come_go_on(store):
    early = meet(store, 0, 2)
    time.sleep(0.2)
    early[0].world.stop.set()  # told to stop while it waits: that is for all to decide, when they are there
    late = meet(store, 1)
    assert ends(early + late) == [True] * SIZE


def test_where_one_has_left_nobody_goes_on(store):
    waiting = meet(store, 0, 1)
    waiting[0].world.stop.set()
    began = time.monotonic()
    assert ends(waiting) == [False, False], "the other one too"
    assert 1 <= time.monotonic() - began < 5
    assert ends(meet(store, 2)) == [False], "who comes then finds two that are no more"


def test_the_time_to_leave_counts_from_when_it_was_told(store):
    (waiting,) = meet(store, 0)
    time.sleep(1.5)
    waiting.world.stop.set()
    time.sleep(0.3)
    assert waiting.is_alive()
    others = meet(store, 1, 2)
    assert ends([waiting, *others]) == [True] * SIZE
