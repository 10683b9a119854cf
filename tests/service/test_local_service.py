"""Many prompts over an engine in the same process."""

import os
import signal
import threading

import pytest

from core.errors import EngineDeadError, RequestError
from core.interfaces.frontend import ModelCard
from core.interfaces.request import SamplingParams
from core.text.local import LocalService
from tests.service.fake_engine import BREAKS, FAILS, REFUSED, VOCAB, FakeEngine, LetterTokenizer, Setup

CARD = ModelCard("fake", ("fake",), 10_000, VOCAB, created=0)


@pytest.fixture
def local():
    engine = FakeEngine(Setup(max_waiting=8))
    service = LocalService(engine, LetterTokenizer(), None, CARD)
    service.engine = engine
    yield service
    service.close()
    assert engine.closed
    assert engine.running == {}


def test_results_come_in_the_order_of_the_jobs_whatever_finishes_first(local):
    finished = []
    jobs = [([0], SamplingParams(max_tokens=5)), ([10], SamplingParams(max_tokens=2)), ([20], SamplingParams(max_tokens=3))]
    results = local.generate(jobs, finished.append)
    assert [[part.text for part in result] for result in results] == [["BCDEF"], ["LM"], ["VWX"]]
    assert [result[0].token_ids for result in results] == [[1, 2, 3, 4, 5], [11, 12], [21, 22, 23]]
    assert finished == [1, 2, 0]


def test_vectors_have_length_one_and_a_mistake_names_its_prompt(local):
    vectors = local.embed([[1, 2], [3]], pooling="mean")
    assert vectors == [pytest.approx([0.8, 0.6])] * 2
    with pytest.raises(RequestError, match="prompt 1: nobody wants this"):
        local.embed([[1], [REFUSED]])


def test_more_jobs_than_the_engine_s_queue_takes(local):
    results = local.generate([([i], SamplingParams(n=2, max_tokens=2)) for i in range(100)])
    assert [[part.token_ids for part in result] for result in results] == [[[i + 1, i + 2]] * 2 for i in range(100)]
    assert [[part.index for part in result] for result in results] == [[0, 1]] * 100


def test_stop_strings_end_the_engine_s_request(local):
    [[part]] = local.generate([([0], SamplingParams(max_tokens=None, stop=("D",)))])
    assert (part.text, part.finish_reason, part.stop_reason) == ("BC", "stop", "D")
    assert local.engine.finished == {"abort": 1}


def test_a_wrong_job_is_named_before_any_has_run(local):
    with pytest.raises(RequestError) as caught:
        local.generate([([0], SamplingParams()), ([VOCAB], SamplingParams())])
    assert caught.value.message == "prompt 1: 1000 is not a token id of this model: ids are whole numbers in [0, 1000)"
    assert local.engine.steps == 0


def test_what_only_the_engine_refuses_is_named_too_and_the_others_are_ended(local):
    with pytest.raises(RequestError, match="prompt 1: nobody wants this"):
        local.generate([([0], SamplingParams()), ([REFUSED], SamplingParams())])
    assert local.engine.running == {}
    assert local.generate([([0], SamplingParams(max_tokens=1))])[0][0].token_ids == [1]


def test_a_request_that_failed_in_the_engine_says_so(local):
    [[failed], [well]] = local.generate([([FAILS], SamplingParams()), ([0], SamplingParams(max_tokens=2))])
    assert (failed.finish_reason, failed.error) == ("error", "the numbers went wrong")
    assert (well.finish_reason, well.error) == ("length", "")


def test_a_step_that_raises_leaves_nothing_running(local):
    with pytest.raises(ZeroDivisionError):
        local.generate([([BREAKS], SamplingParams())])
    assert local.engine.running == {}


def test_an_engine_that_forgets_a_request_is_noticed(local):
    local.engine.step = local.engine.running.clear
    with pytest.raises(EngineDeadError, match="the engine stopped working on requests it had accepted"):
        local.generate([([0], SamplingParams())])


def test_ctrl_c_between_two_steps_ends_the_call_and_leaves_the_engine_usable(local):
    before = signal.getsignal(signal.SIGINT)
    step = local.engine.step

    def interrupted():
        if local.engine.steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    local.engine.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        local.generate([([0], SamplingParams(max_tokens=None))] * 20)
    assert local.engine.steps == 4
    assert local.engine.running == {}
    assert signal.getsignal(signal.SIGINT) is before
    assert local.generate([([0], SamplingParams(max_tokens=1))])[0][0].token_ids == [1]


def test_a_second_ctrl_c_does_not_wait_for_the_step(local):
    def stuck():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one did not end the step")

    local.engine.step = stuck
    with pytest.raises(KeyboardInterrupt):
        local.generate([([0], SamplingParams(max_tokens=None))])


def test_it_works_outside_the_main_thread(local):
    found = []
    thread = threading.Thread(target=lambda: found.append(local.generate([([0], SamplingParams(max_tokens=1))])))
    thread.start()
    thread.join()
    assert found[0][0][0].token_ids == [1]


def test_after_close_it_refuses_work(local):
    local.close()
    local.close()
    with pytest.raises(EngineDeadError, match="this LLM has been shut down"):
        local.generate([([0], SamplingParams())])
