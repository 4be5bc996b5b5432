"""LangChain's own suites for chat models, passed by `ChatMesh` over a scripted tier: in this process, and over HTTP.

Not claimed, so that the suite skips it:
- PDF and audio inputs and results: no price per token bounds what they cost, and such a call is never made.
- `test_stream_time`, which replays a recorded connection: nothing is recorded here, the API is real.
- another model by name in one process: its one graph is the model. Over HTTP this is tested.
- the environment's variables in one process: they say where a served mesh is.
- serialisation: LangChain loads only classes of its own list again, and a graph is code, found by its import.
"""

import base64

import httpx
import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from mesh.catalogue import Catalogue
from mesh.engine import Mesh
from mesh.langchain import ChatMesh
from mesh.providers.scripted import ScriptedProvider
from mesh.testing import spec_of
from tests.actor import actor
from tests.api_server import served
from tests.graphs_for_tests import WIDE, pinned_one

pytestmark = pytest.mark.anyio

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
AT: dict[str, str] = {}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def _picture(monkeypatch):
    """The suite fetches a picture from the web; here it gets one that is at hand."""
    request = httpx.Request("GET", "http://127.0.0.1/")
    monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, content=PIXEL, request=request))


@pytest.fixture
def vcr():
    """Asked for by a test that then skips: nothing is recorded."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    graph, other = pinned_one("small"), pinned_one("large")
    other.name = "other"
    replies = {"small": actor, "large": actor}
    with served(tmp_path_factory.mktemp("served"), [graph, other], replies, aliases={"large": "other"}) as api:
        yield f"{api.url}/v1"


@pytest.fixture(autouse=True)
def _at(request):
    """The suite's properties are read before any fixture could be handed to them."""
    if "http" in request.node.nodeid.lower():
        AT["url"] = request.getfixturevalue("url")


def in_process() -> Mesh:
    specs = {"small": spec_of("small", context_window=200_000)}
    return Mesh(
        pinned_one("small", WIDE),
        catalogue=Catalogue(specs),
        providers={"scripted": ScriptedProvider({"small": actor})},
    )


class Claims:
    """What ChatMesh can do."""

    @property
    def chat_model_class(self):
        return ChatMesh

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_image_inputs(self):
        return True

    @property
    def supports_image_urls(self):
        return True

    @property
    def supports_image_tool_message(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True

    @property
    def supported_usage_metadata_details(self):
        return {"invoke": ["reasoning_output", "cache_read_input"], "stream": ["reasoning_output", "cache_read_input"]}

    def invoke_with_reasoning_output(self, *, stream=False):
        model = ChatMesh(**self.chat_model_params)
        if not stream:
            return model.invoke("Hello")
        pieces = list(model.stream("Hello"))
        return sum(pieces[1:], pieces[0])

    invoke_with_cache_read_input = invoke_with_reasoning_output


class TestUnitInProcess(Claims, ChatModelUnitTests):
    @property
    def chat_model_params(self):
        return {"graph": in_process()}


class TestUnitHttp(Claims, ChatModelUnitTests):
    @property
    def chat_model_params(self):
        return {"base_url": "http://127.0.0.1:8000/v1", "model": "support"}

    @property
    def init_from_env_params(self):
        environment = {"MESH_API_KEY": "test", "MESH_BASE_URL": "http://127.0.0.1:8000/v1"}
        return environment, {}, {"api_key": "test", "base_url": "http://127.0.0.1:8000/v1"}


class TestInProcess(Claims, ChatModelIntegrationTests):
    @property
    def chat_model_params(self):
        return {"graph": in_process()}


class TestHttp(Claims, ChatModelIntegrationTests):
    @property
    def chat_model_params(self):
        return {"base_url": AT["url"], "model": "one"}

    @property
    def supports_model_override(self):
        return True

    @property
    def model_override_value(self):
        return "large"  # an alias: the tier behind it has the same name
