"""The OpenAPI description is of the routes that are there, and real answers have the shapes it tells."""

import jsonschema
import pytest

from frontends.openai_http.app import create_app
from frontends.openai_http.description import ROUTES, document
from tests.frontends.fake_service import FakeService
from tests.frontends.test_app import USER, get, post

UNTOLD = {"/openapi.json"}
BODIES = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "once", "logprobs": 1},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"model": "a model", "max_tokens": 4, "messages": USER},
    "/v1/messages/count_tokens": {"model": "a model", "messages": USER},
    "/v1/embeddings": {"input": "once"},
    "/tokenize": {"prompt": "once", "return_token_strs": True},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/abort_requests": {"abort_all": True},
    "/v1/pause": {},
    "/v1/resume": {},
}


def test_every_route_is_described_and_no_other():
    there = {
        (method.lower(), route.path.replace(":path", ""))
        for route in create_app(FakeService()).routes
        for method in route.methods
        if route.path not in UNTOLD and method != "HEAD"
    }
    assert {(each.method, each.path) for each in ROUTES} == there


@pytest.fixture(scope="module")
def told():
    return get("/openapi.json").json()


def held(told, path, method, answer):
    known = told["paths"][path][method]["responses"]
    status = str(answer.status_code)
    schema = (known.get(status) or known[f"{status[0]}XX"])["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": told["components"]}).validate(answer.json())


@pytest.mark.parametrize("path", BODIES)
def test_answers_and_refusals_have_their_shape(path, told):
    model = FakeService().card.served_names[0]
    body = BODIES[path] | ({"model": model} if "model" in BODIES[path] else {})
    answer = post(path, body)
    assert answer.status_code == 200, answer.text
    held(told, path, "post", answer)
    if path not in ("/v1/pause", "/v1/resume"):
        refused = post(path, b"{")
        assert refused.status_code == 400
        held(told, path, "post", refused)


@pytest.mark.parametrize(
    "path", [each.path for each in ROUTES if each.method == "get" and each.answer and "{" not in each.path]
)
def test_what_is_read_has_its_shape(path, told):
    answer = get(path)
    assert answer.status_code == 200
    held(told, path, "get", answer)


def test_one_model_is_found_or_not(told):
    name = FakeService().card.served_names[0]
    held(told, "/v1/models/{name}", "get", get(f"/v1/models/{name}"))
    held(told, "/v1/models/{name}", "get", get("/v1/models/nothing"))


def test_every_reference_is_there():
    whole = document("1", ["a model"])

    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if "$ref" in node else [])
            for each in node.values():
                yield from references(each)
        elif isinstance(node, list):
            for each in node:
                yield from references(each)

    found = {reference.removeprefix("#/components/schemas/") for reference in references(whole)}
    assert found
    assert found <= set(whole["components"]["schemas"])
