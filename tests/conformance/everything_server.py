"""The tools, resources and prompts that the conformance suite wants of a server, served by ours on a free port.

Prints its URL, and serves until it is stopped.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import anyio
from mcp import types

from agentkit import Artifact, Tool, ToolError, ToolOutput, tool
from agentkit.mcp.caller import Caller
from agentkit.mcp.serve import Address, Offer, Prompt, Resource, caller, serve_http
from agentkit.progress import report_progress

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
WAV = b"RIFF$\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00@\x1f\x00\x00@\x1f\x00\x00\x01\x00\x08\x00data\x00\x00\x00\x00"


def client() -> Caller:
    found = caller()
    assert found is not None
    return found


def form(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


STRING = {"type": "string"}


# ------------------------------------------------------------------ results of every kind


@tool
def test_simple_text() -> str:
    """Text."""
    return "This is a simple text response for testing."


@tool
def test_image_content() -> ToolOutput:
    """An image."""
    return ToolOutput("", artifacts=(Artifact("red.png", "image/png", PNG),))


@tool
def test_audio_content() -> ToolOutput:
    """A sound."""
    return ToolOutput("", artifacts=(Artifact("silence.wav", "audio/wav", WAV),))


@tool
def test_embedded_resource() -> ToolOutput:
    """A resource."""
    text = b"This is an embedded resource content."
    return ToolOutput("", artifacts=(Artifact("test://embedded-resource", "text/plain", text),))


@tool
def test_multiple_content_types() -> ToolOutput:
    """Text, an image and a resource."""
    data = json.dumps({"test": "data", "value": 123}).encode()
    artifacts = (
        Artifact("red.png", "image/png", PNG),
        Artifact("test://mixed-content-resource", "application/json", data),
    )
    return ToolOutput("Multiple content types test:", artifacts=artifacts)


@tool
def test_error_handling() -> str:
    """Always fails."""
    raise ToolError("This tool intentionally returns an error for testing")


@tool
async def test_tool_with_logging() -> str:
    """Logs three times."""
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await client().log(text)
    return "logged"


@tool
async def test_logging_tool() -> str:
    """Logs to clients that want it."""
    await client().log("a line of the log")
    return "logged"


@tool
async def test_tool_with_progress() -> str:
    """Reports progress."""
    for done in (0, 50, 100):
        await report_progress(done, 100, f"{done} of 100")
    return "done"


async def answer_schema(arguments: Mapping[str, Any]) -> ToolOutput:
    return ToolOutput(json.dumps(dict(arguments)))


SCHEMA_TOOL = Tool(
    "json_schema_2020_12_tool",
    "Tool with JSON Schema 2020-12 features",
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": STRING, "city": STRING},
            }
        },
        "properties": {
            "name": STRING,
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": STRING,
            "email": STRING,
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
    answer_schema,
)
HEADER_TOOL = Tool(
    "test_custom_headers",
    "An argument that clients also send as a header",
    {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
        "required": ["region"],
    },
    answer_schema,
)

# ------------------------------------------------------------------ questions to the client


def question(message: str, **properties: Any) -> types.ElicitRequest:
    params = types.ElicitRequestFormParams(message=message, requested_schema=form(**properties))
    return types.ElicitRequest(params=params)


def sampling(prompt: str, tokens: int) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=types.TextContent(text=prompt))
    return types.CreateMessageRequest(
        params=types.CreateMessageRequestParams(messages=[message], max_tokens=tokens)
    )


def said(answer: types.InputResponse) -> str:
    assert isinstance(answer, types.CreateMessageResult)
    return answer.content.text if answer.content.type == "text" else answer.content.type


def filled_in(answer: types.InputResponse) -> dict[str, Any]:
    assert isinstance(answer, types.ElicitResult)
    return dict(answer.content or {})


@tool
async def test_sampling(prompt: str) -> str:
    """Asks the client's model."""
    answers = await client().ask({"sampling": sampling(prompt, 100)})
    return f"LLM response: {said(answers['sampling'])}"


@tool
async def test_elicitation(message: str) -> str:
    """Asks the user."""
    answer = await client().elicit(message, form(username=STRING, email=STRING))
    return f"User response: action={answer.action}, content={json.dumps(answer.content)}"


@tool
async def test_elicitation_sep1034_defaults() -> str:
    """Asks the user for values that have defaults."""
    fields = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    answer = await client().elicit("Please check these values", {"type": "object", "properties": fields})
    return f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}"


def titled(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"const": const, "title": title} for const, title in pairs]


@tool
async def test_elicitation_sep1330_enums() -> str:
    """Asks the user to choose."""
    options = ["option1", "option2", "option3"]
    values = ("value1", "First Option"), ("value2", "Second Option"), ("value3", "Third Option")
    names = ["Option One", "Option Two", "Option Three"]
    fields = {
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled(*values)},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": names},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled(*values)}},
    }
    answer = await client().elicit("Please choose", {"type": "object", "properties": fields})
    return f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}"


@tool
async def test_input_required_result_elicitation() -> str:
    """Asks for a name."""
    answers = await client().ask({"user_name": question("What is your name?", name=STRING)})
    return f"Hello, {filled_in(answers['user_name']).get('name')}!"


@tool
async def test_input_required_result_sampling() -> str:
    """Asks the client's model."""
    answers = await client().ask({"capital_question": sampling("What is the capital of France?", 100)})
    return said(answers["capital_question"])


@tool
async def test_input_required_result_list_roots() -> str:
    """Asks for the client's folders."""
    answers = await client().ask({"client_roots": types.ListRootsRequest()})
    roots = answers["client_roots"]
    assert isinstance(roots, types.ListRootsResult)
    return ", ".join(str(root.uri) for root in roots.roots)


async def confirmed() -> str:
    answers = await client().ask({"confirm": question("Please confirm", ok={"type": "boolean"})})
    return f"state-ok: {filled_in(answers['confirm']).get('ok')}"


@tool
async def test_input_required_result_request_state() -> str:
    """Asks for a confirmation."""
    return await confirmed()


@tool
async def test_input_required_result_tampered_state() -> str:
    """Asks for a confirmation."""
    return await confirmed()


@tool
async def test_input_required_result_multiple_inputs() -> str:
    """Asks for three things at once."""
    answers = await client().ask(
        {
            "user_name": question("What is your name?", name=STRING),
            "greeting": sampling("Generate a greeting", 50),
            "client_roots": types.ListRootsRequest(),
        }
    )
    return f"{said(answers['greeting'])} {filled_in(answers['user_name']).get('name')}"


@tool
async def test_input_required_result_multi_round() -> str:
    """Asks for two things one after the other."""
    first = await client().ask({"step1": question("Step 1: What is your name?", name=STRING)})
    second = await client().ask({"step2": question("Step 2: What is your favorite color?", color=STRING)})
    return f"{filled_in(first['step1']).get('name')} likes {filled_in(second['step2']).get('color')}"


@tool
async def test_input_required_result_capabilities() -> str:
    """Asks only for what the client can answer."""
    questions: dict[str, types.InputRequest] = {
        "user_name": question("What is your name?", name=STRING),
        "greeting": sampling("Generate a greeting", 50),
        "client_roots": types.ListRootsRequest(),
    }
    answers = await client().ask({k: q for k, q in questions.items() if client().can(q.method)})
    return ", ".join(answers)


@tool
async def test_missing_capability() -> str:
    """Asks the client's model, whether or not it offers one."""
    answers = await client().ask({"sampling": sampling("Hello", 10)})
    return said(answers["sampling"])


@tool
async def test_streaming_elicitation() -> str:
    """Asks the user."""
    answers = await client().ask({"user_name": question("What is your name?", name=STRING)})
    return str(filled_in(answers["user_name"]).get("name"))


# ------------------------------------------------------------------ changes


@tool
async def test_trigger_tool_change() -> str:
    """Says that the tools changed."""
    await client().changed("tools")
    return "changed"


@tool
async def test_trigger_prompt_change() -> str:
    """Says that the prompts changed."""
    await client().changed("prompts")
    return "changed"


# ------------------------------------------------------------------ resources and prompts


async def static_text() -> str:
    return "This is the content of the static text resource."


async def static_binary() -> bytes:
    return PNG


async def from_template(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


RESOURCES = (
    Resource("test://static-text", static_text, "Static text", "A text that never changes"),
    Resource(
        "test://static-binary", static_binary, "Static binary", "An image that never changes", "image/png"
    ),
    Resource("test://watched-resource", static_text, "Watched", "A resource to subscribe to"),
    Resource(
        "test://template/{id}/data", from_template, "Template", "Data for an ID", mime="application/json"
    ),
)


def message(content: types.ContentBlock) -> types.PromptMessage:
    return types.PromptMessage(role="user", content=content)


async def simple_prompt(arguments: Mapping[str, str]) -> str:
    return "This is a simple prompt for testing."


async def prompt_with_arguments(arguments: Mapping[str, str]) -> str:
    return f"Prompt with arguments: arg1='{arguments['arg1']}', arg2='{arguments['arg2']}'"


async def prompt_with_resource(arguments: Mapping[str, str]) -> list[types.PromptMessage]:
    embedded = types.TextResourceContents(
        uri=arguments["resourceUri"], mime_type="text/plain", text="Embedded resource content for testing."
    )
    return [
        message(types.EmbeddedResource(resource=embedded)),
        message(types.TextContent(text="Please process the embedded resource above.")),
    ]


async def prompt_with_image(arguments: Mapping[str, str]) -> list[types.PromptMessage]:
    image = types.ImageContent(data=base64.b64encode(PNG).decode(), mime_type="image/png")
    return [message(image), message(types.TextContent(text="Please analyze the image above."))]


async def prompt_that_asks(arguments: Mapping[str, str]) -> str:
    answers = await client().ask(
        {"user_context": question("What context should the prompt use?", context=STRING)}
    )
    return f"Use this context: {filled_in(answers['user_context']).get('context')}"


PROMPTS = (
    Prompt("test_simple_prompt", simple_prompt, "A prompt without arguments"),
    Prompt(
        "test_prompt_with_arguments",
        prompt_with_arguments,
        "A prompt with arguments",
        {"arg1": "First test argument", "arg2": "Second test argument"},
    ),
    Prompt(
        "test_prompt_with_embedded_resource",
        prompt_with_resource,
        "A prompt with a resource in it",
        {"resourceUri": "URI of the resource to embed"},
    ),
    Prompt("test_prompt_with_image", prompt_with_image, "A prompt with an image in it"),
    Prompt("test_input_required_result_prompt", prompt_that_asks, "A prompt that asks first"),
)


async def complete(about: str, argument: str, typed: str) -> list[str]:
    return [value for value in ("paris", "park", "party", "test") if value.startswith(typed)]


def show(address: Address) -> None:
    print(address.url, flush=True)


OFFER = Offer(
    tools=[found for found in list(globals().values()) if isinstance(found, Tool)],
    resources=RESOURCES,
    prompts=PROMPTS,
    complete=complete,
    name="agentkit-conformance",
)

if __name__ == "__main__":
    # the suite has no means to send a token
    anyio.run(lambda: serve_http(OFFER, auth=False, started=show))
