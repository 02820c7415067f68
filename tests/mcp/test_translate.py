from __future__ import annotations

import base64
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from mcp import types

from agentkit.mcp.translate import clean_schema, mend_listing, output, tool_names

NAMES = st.text(max_size=80) | st.sampled_from(["a", "a_2", "s__a", "a.", "ä", "x" * 64, "x" * 65, "x" * 66])


@given(st.lists(st.tuples(NAMES, NAMES), max_size=12))
def test_names_are_always_acceptable_to_model_apis_and_never_equal(tools: list[tuple[str, str]]) -> None:
    names = tool_names(tools)
    assert len(set(names)) == len(tools)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)


def test_a_name_is_kept_unless_two_servers_have_it() -> None:
    tools = [("a", "read"), ("a", "list"), ("my files", "read"), ("b", "get.it")]
    assert tool_names(tools) == ["a__read", "list", "my_files__read", "get_it"]


def test_only_the_keyword_title_is_left_out_of_a_schema() -> None:
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Arguments",
        "properties": {
            "title": {"title": "Title", "type": "string", "default": {"title": "kept"}},
            "book": {"anyOf": [{"$ref": "#/$defs/title"}, {"type": "null", "title": "x"}]},
        },
        "$defs": {"title": {"title": "T", "type": "object", "properties": {}}},
        "required": ["title"],
        "anyOf": [{"required": ["book"]}],
    }
    assert clean_schema(schema) == {
        "type": "object",
        "properties": {
            "title": {"type": "string", "default": {"title": "kept"}},
            "book": {"anyOf": [{"$ref": "#/$defs/title"}, {"type": "null"}]},
        },
        "$defs": {"title": {"type": "object", "properties": {}}},
        "required": ["title"],
        "anyOf": [{"required": ["book"]}],
    }


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "inputSchema", "type", "properties", "annotations", "title"]), inner
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4))
def test_whatever_a_server_lists_is_a_valid_listing_after_mending(listed: list[Any]) -> None:
    tools, problems = mend_listing(listed)
    assert len(tools) + len(problems) == len(listed)
    for tool in types.ListToolsResult.model_validate({"tools": tools}, by_name=False).tools:
        parameters = clean_schema(tool.input_schema)
        assert parameters["type"] == "object" and isinstance(parameters["properties"], dict)


def result(*blocks: dict[str, Any], **more: Any) -> types.CallToolResult:
    return types.CallToolResult.model_validate({"content": list(blocks), **more}, by_name=False)


def test_text_comes_first_and_structured_content_only_without_it() -> None:
    text = {"type": "text", "text": "one"}
    assert output("t", result(text, text, structuredContent={"n": 1})).content == "one\none"
    assert output("t", result(structuredContent={"n": "ä"})).content == '{"n": "ä"}'
    assert output("t", result()).content == "(no output)"
    assert output("t", result(text, isError=True)).is_error


def test_blobs_become_artifacts_and_resources_are_read_or_named() -> None:
    blob = base64.b64encode(b"data").decode()
    got = output(
        "t",
        result(
            {"type": "resource", "resource": {"uri": "file:///a/b.txt", "text": "inside"}},
            {"type": "resource", "resource": {"uri": "file:///a/b.bin", "blob": blob, "mimeType": "x/y"}},
            {"type": "resource_link", "uri": "file:///c", "name": "c"},
            {"type": "audio", "data": blob, "mimeType": "audio/wav"},
            {"type": "image", "data": "not base64!", "mimeType": "image/png"},
        ),
    )
    kept = [(a.mime, a.data) for a in got.artifacts]
    assert kept == [("x/y", b"data"), ("audio/wav", b"data")] and got.artifacts[0].name == "b.bin"
    assert got.content.splitlines()[:3] == [
        "inside",
        "[b.bin: x/y, 4 bytes, given to the user]",
        "[resource c: file:///c]",
    ]
    assert "image/png that could not be decoded" in got.content
