"""/openapi.json is a valid document, and the server does what it says."""

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from benchmarks import contract
from mesh.serve import routes, status
from mesh.serve.fields import ChatFields, HintFields
from mesh.serve.openapi import document
from mesh.state import Hints
from tests.api_server import Served

MODELS = ("auto", "one", "cascade", "gpt-4o")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with contract.serving(tmp_path_factory.mktemp("openapi")) as running:
        yield running


@pytest.fixture(scope="module")
def told(api: Served) -> dict[str, Any]:
    with urllib.request.urlopen(f"{api.url}/openapi.json", timeout=10) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    return found


def against(told: dict[str, Any], name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": told["components"]}
    return jsonschema.Draft202012Validator(schema)


def test_the_document_is_valid_and_shows_the_models_that_are_served(told):
    OpenAPIV31SpecValidator(told).validate()
    assert told["components"]["schemas"]["ChatCompletionRequest"]["properties"]["model"]["examples"] == list(MODELS)
    for schema in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_page_is_in_it_with_its_methods(told):
    listed = {page: {method.upper() for method in methods} for page, methods in told["paths"].items()}
    assert listed == {page: set(methods) - {"HEAD"} for page, methods in routes.pages().items()}


def test_every_code_is_in_it_and_no_other(told):
    listed: dict[int, set[str]] = {}
    for methods in told["paths"].values():
        for operation in methods.values():
            for number, reply in operation["responses"].items():
                error = reply["content"].get("application/json", {}).get("schema", {}).get("properties", {})
                if "error" in error:
                    listed[int(number)] = set(error["error"]["properties"]["code"]["enum"])
    assert listed == {number: codes for number, codes in status.codes().items() if number != 405}


def test_the_known_fields_are_all_in_it():
    schemas = document(MODELS, 1_000)["components"]["schemas"]
    assert set(schemas["ChatCompletionRequest"]["properties"]) == {*ChatFields.model_fields, "mesh"}
    assert set(schemas["Hints"]["properties"]) == set(HintFields.model_fields)
    hints = {name.replace("max_cost_nusd", "max_cost_usd") for name in Hints.__dataclass_fields__}
    assert set(HintFields.model_fields) == hints


def test_replies_are_of_the_form_that_it_says_whole_streamed_and_wrong(api, told):
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)
    asked: Any = {"model": "cascade", "messages": [{"role": "user", "content": "hi"}]}
    raw = client.chat.completions.with_raw_response.create(**asked, extra_headers={"Idempotency-Key": "once"})
    against(told, "ChatCompletion").validate(json.loads(raw.text))
    named = told["paths"][routes.CHAT]["post"]["responses"]["200"]["headers"]
    assert set(named) - {"x-mesh-bypass"} <= {name.lower() for name in raw.headers}  # that one only while it is on
    stream = client.chat.completions.with_streaming_response.create(**asked, stream=True)
    with stream as reply:
        events = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert events.pop() == "[DONE]"
    for event in events:
        against(told, "ChatCompletionChunk").validate(json.loads(event))
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**asked | {"model": "none"})
    against(told, "Error").validate(json.loads(caught.value.response.text))


def test_a_real_record_has_no_member_that_it_does_not_name(api, told):
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)
    reply: Any = client.chat.completions.create(model="cascade", messages=[{"role": "user", "content": "hi"}])
    record = kept(api, reply.mesh["request_id"])
    against(told, "Traversal").validate(record)
    schema = told["components"]["schemas"]["Traversal"]
    assert set(schema["properties"]) == set(record)
    hop = schema["properties"]["hops"]["items"]
    assert set(hop["properties"]) == set(record["hops"][0])
    attempt = hop["properties"]["attempts"]["items"]
    assert set(attempt["properties"]) == set(record["hops"][0]["attempts"][0])


def kept(api: Served, request_id: str) -> dict[str, Any]:
    """The record, once its writer has kept it."""
    until = time.monotonic() + 5
    while (record := api.store.get(request_id)) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return record


def test_schemathesis_finds_nothing_in_150_cases():
    """`make prove` tries 10,000."""
    told: list[str] = []
    tally = contract.contract(1, 160, told.append)
    assert not tally.failures, "\n".join(told)
    assert tally.cases >= 140
    assert not [said for said in tally.answers if said.startswith("5")]
    assert tally.answers["200"] > 20
    assert tally.answers["400"] > 30
