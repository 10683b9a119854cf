"""A server whose model two processes share: it answers as one does, and the loss of a rank ends it with a clear error."""

import threading

import httpx
import openai
import psutil

from core.errors import ExitCode
from tests.must_show.served import serving

MODEL = "random:llama-tiny"
PROMPT = [5, 6, 7]
FLAGS = ("--model", MODEL, "--dtype", "float32", "--max-model-len", "1024")


def tokens_of(server):
    answer = httpx.post(
        f"{server.url}/v1/completions",
        json={
            "model": MODEL,
            "prompt": PROMPT,
            "max_tokens": 16,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        },
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_a_shared_model_answers_and_a_killed_rank_is_named():
    with serving(*FLAGS) as server:
        alone = tokens_of(server)
    with serving(*FLAGS, "--tensor-parallel-size", "2") as server:
        assert tokens_of(server) == alone
        family = psutil.Process(server.process.pid).children(recursive=True)
        (rank,) = (process for process in family if "dovetail-rank-1" in process.cmdline())
        began, failed = threading.Event(), []
        client = threading.Thread(target=stream, args=(server.url, began, failed))
        client.start()
        assert began.wait(30)
        rank.kill()
        client.join(10)
        what = f"rank 1, the process {rank.pid}, was ended by SIGKILL (out of memory?)"
        assert len(failed) == 1
        assert what in failed[0]
        assert server.process.wait(15) == ExitCode.ENGINE_DIED
        _, alive = psutil.wait_procs(family, 5)
        assert not alive, "a process outlived the server"
    assert what in "".join(server.errors)


def stream(url, began, failed):
    body = {"ignore_eos": True}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        try:
            for _ in client.completions.create(
                model=MODEL, prompt=PROMPT, max_tokens=900, temperature=0, stream=True, extra_body=body
            ):
                began.set()
        except (openai.APIError, httpx.HTTPError) as error:
            failed.append(str(error))
