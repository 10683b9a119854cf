"""When those that find no place are told to come again, by a clock of the test's own."""

import asyncio

import pytest

from core.interfaces.request import SamplingParams
from frontends.openai_http.door import Call, Door
from frontends.openai_http.pace import Pace
from frontends.openai_http.schema import CompletionBody
from frontends.openai_http.settings import HttpSettings
from tests.frontends.fake_service import FakeService


class Time:
    now, chance = 1000.0, 0.5

    def pace(self):
        return Pace(lambda: self.now, lambda: self.chance)

    def work(self, pace, ends, a_second):
        """``ends`` calls come to their end, so many a second, while others run."""
        for _ in range(ends):
            pace.began()
            self.now += 1 / a_second
            pace.ended(served=True)


@pytest.mark.parametrize(("a_second", "waiting", "seconds"), [(2, 10, 5), (20, 10, 1), (0.5, 6, 12), (2, 1000, 30)])
def test_it_is_the_queue_over_the_pace(a_second, waiting, seconds):
    time = Time()
    pace = time.pace()
    pace.began()
    time.work(pace, 40, a_second)
    assert pace.wait(waiting) == seconds


def test_where_nothing_ends_it_grows_up_to_its_bound():
    time = Time()
    pace = time.pace()
    pace.began()
    told = []
    for _ in range(5):
        told.append(pace.wait(1000))
        time.now += 8
    assert told == [1, 8, 16, 24, 30]


def test_what_is_long_ago_does_not_count():
    time = Time()
    pace = time.pace()
    pace.began()
    time.work(pace, 100, 10)
    assert pace.wait(20) == 2
    time.now += 10
    assert pace.wait(20) == 10, "nothing has ended for ten seconds"
    pace.ended(served=True)
    time.now += 3600
    pace.began()
    assert pace.wait(20) == 1, "it was idle, and has just begun"


def test_who_was_refused_is_none_that_was_served():
    time = Time()
    pace = time.pace()
    pace.began()
    time.work(pace, 10, 1)
    for _ in range(100):
        pace.began()
        pace.ended(served=False)
    assert pace.wait(10) == 10


def test_clients_are_told_to_come_at_different_times():
    time = Time()
    pace = time.pace()
    pace.began()
    time.work(pace, 20, 2)
    told = []
    for time.chance in (0.0, 0.25, 0.5, 0.75, 0.999):
        told.append(pace.wait(40))
    assert told == [15, 18, 20, 23, 25]
    assert {pace.wait(0), pace.wait(10**6)} == {2, 30}


def test_the_door_counts_who_has_no_token_yet():
    async def use():
        time = Time()
        door = Door(FakeService(), HttpSettings())
        door.pace = time.pace()
        bodies = [CompletionBody(prompt="x", request_id=str(number)) for number in range(3)]
        calls = [Call.of(body, "cmpl-", "fake", [[1]], SamplingParams()) for body in bodies]
        for call in calls:
            door.begin(call)
        time.work(door.pace, 10, 1)
        waiting = door.patience()
        for call in calls:
            await door.finish(call)
        return waiting, door.patience()

    assert asyncio.run(use()) == (4, 1)  # the three, and whoever asks
