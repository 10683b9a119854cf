"""Outputs of a given form, over HTTP and in bulk: every complete one is valid, whatever was drawn."""

import json
import random
import time

import jsonschema
import openai
import pytest

from core.errors import RequestError
from core.interfaces.request import Grammar
from frontends.offline import LLM, SamplingParams
from tests.must_show.served import serving

TINY = {"dtype": "float32", "device": "cpu", "threads": 1, "max_model_len": 512, "max_num_seqs": 16}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def schema(draw, depth=3):
    """A JSON schema of moderate depth, whose documents have an end."""
    kinds = ["string", "integer", "boolean", "enum", "null", *(["object", "array"] * 2 if depth else [])]
    match draw.choice(kinds):
        case "object":
            names = draw.sample(["id", "name", "tags", "size", "when", "parent"], draw.randint(1, 3))
            fields = {name: schema(draw, depth - 1) for name in names}
            required = [name for name in names if draw.random() < 0.7]
            return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}
        case "array":
            return {"type": "array", "items": schema(draw, depth - 1), "minItems": draw.randint(0, 1), "maxItems": 2}
        case "string":
            return draw.choice([{"type": "string", "maxLength": 6}, {"type": "string", "pattern": "^[a-c]{2,4}$"}])
        case "integer":
            return {"type": "integer", "minimum": -9, "maximum": draw.randint(0, 99)}
        case "enum":
            return {"enum": draw.sample(["red", "green", 1, 2, None, True], 3)}
        case kind:
            return {"type": kind}


def object_schema(draw):
    return {
        "type": "object",
        "properties": {"value": schema(draw), "more": schema(draw)},
        "required": ["value"],
        "additionalProperties": False,
    }


def test_two_hundred_random_schemas_and_as_many_valid_documents(compute_backend):
    """A model of random weights at temperature 1 says anything that may be said."""
    draw = random.Random(7)
    schemas = [object_schema(draw) for _ in range(200)]
    with LLM("random:tiny", backend=compute_backend, guided_decoding_disable_any_whitespace=True, **TINY) as llm:
        answers = llm.generate(
            [{"prompt_token_ids": [1, 2, 3]}] * len(schemas),
            [
                SamplingParams(temperature=1, max_tokens=500, seed=number, grammar=Grammar("json_schema", json.dumps(each)))
                for number, each in enumerate(schemas)
            ],
        )
        stats = llm.stats()
    outputs = [answer.outputs[0] for answer in answers]
    assert {output.finish_reason for output in outputs} == {"stop"}
    for output, wanted in zip(outputs, schemas, strict=True):
        jsonschema.validate(json.loads(output.text), wanted)
    assert len({output.text for output in outputs}) > 100
    assert stats.pages_free == stats.pages_total


def test_neighbours_without_a_form_are_left_alone():
    prompts = [{"prompt_token_ids": [number, 5, 7]} for number in range(3, 7)]
    free = SamplingParams(temperature=0.9, seed=3, max_tokens=24, ignore_eos=True)
    formed = SamplingParams(temperature=0.9, seed=3, max_tokens=24, grammar=Grammar("choice", '["yes", "no"]'))
    with LLM("random:tiny", **TINY) as llm:
        alone = [answer.outputs[0].token_ids for answer in llm.generate(prompts, free)]
        mixed = llm.generate([each for prompt in prompts for each in (prompt, prompt)], [free, formed] * 4)
    assert [answer.outputs[0].token_ids for answer in mixed[::2]] == alone
    assert {answer.outputs[0].text for answer in mixed[1::2]} <= {"yes", "no"}


def test_without_a_grammar_backend_a_form_is_refused():
    with (
        LLM("random:tiny", grammar="none", **TINY) as llm,
        pytest.raises(RequestError, match="composed without a grammar backend"),
    ):
        llm.generate([{"prompt_token_ids": [3]}], SamplingParams(grammar=Grammar("json_object")))


@pytest.mark.demo
def test_the_official_client_gets_what_it_asks_for():
    with (
        serving("--max-model-len", "512", "--max-num-seqs", "8", "--log-level", "warning") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        messages = [{"role": "user", "content": "Name a person and their age."}]
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
        for stream in (False, True):
            answer = client.chat.completions.create(
                model="demo", messages=messages, response_format=form, temperature=1, max_tokens=200, stream=stream
            )
            if stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
            else:
                text = answer.choices[0].message.content
            jsonschema.validate(json.loads(text), PERSON)
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="demo", messages=messages, extra_body={"guided_regex": "("})
        assert refused.value.body["param"] == "guided_regex"
        chosen = client.completions.create(
            model="demo",
            prompt="The sky is",
            max_tokens=20,
            n=4,
            temperature=2,
            extra_body={"guided_choice": ["blue", "green"]},
        )
        assert {choice.text for choice in chosen.choices} <= {"blue", "green"}
        assert {choice.finish_reason for choice in chosen.choices} == {"stop"}


@pytest.mark.demo
@pytest.mark.perf
def test_what_a_form_costs_a_token():
    """Tokens of eight requests with a schema and without one, in one engine."""
    schema_of_words = {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 40}
    with LLM("demo", max_model_len=512, max_num_seqs=8) as llm:
        seconds = {}
        for name, grammar in (("warm", None), ("free", None), ("formed", Grammar("json_schema", json.dumps(schema_of_words)))):
            params = SamplingParams(temperature=1, seed=1, max_tokens=64, ignore_eos=grammar is None, grammar=grammar)
            began = time.perf_counter()
            answers = llm.generate(["Here is a list of words:"] * 8, params)
            seconds[name] = (time.perf_counter() - began) / sum(len(answer.outputs[0].token_ids) for answer in answers)
    cost = seconds["formed"] - seconds["free"]
    print(f"{seconds['free'] * 1e3:.2f} ms a token without, {seconds['formed'] * 1e3:.2f} ms with a schema")
    assert cost < 0.25 * seconds["free"]
