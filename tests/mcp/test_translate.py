from __future__ import annotations

import base64
import json
import re
from typing import Any

import mcp_types._v2025_11_25 as v2025
import mcp_types._v2026_07_28 as v2026
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import types

from agentkit.mcp.translate import (
    Definition,
    clean,
    clean_schema,
    define,
    mend_listing,
    output,
    shorten,
    tool_names,
)

Draft202012Validator = pytest.importorskip("jsonschema").Draft202012Validator

NAMES = st.text(max_size=80) | st.sampled_from(["a", "a_2", "s__a", "a.", "ä", "x" * 64, "x" * 65, "x" * 66])


@given(st.lists(st.tuples(NAMES, NAMES), max_size=12))
def test_names_are_always_acceptable_to_model_apis_and_never_equal(tools: list[tuple[str, str]]) -> None:
    names = tool_names(tools)
    assert len(set(names)) == len(tools)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)


def test_a_name_is_kept_unless_two_servers_have_it() -> None:
    tools = [("a", "read"), ("a", "list"), ("my files", "read"), ("b", "get.it")]
    assert tool_names(tools) == ["a__read", "list", "my_files__read", "get_it"]


def test_names_that_were_given_stay_and_new_ones_keep_clear_of_them() -> None:
    known = {("a", "read"): "read", ("a", "list"): "a__list"}
    tools = [("b", "read"), ("a", "read"), ("a", "list"), ("b", "list"), ("c", "a__list")]
    assert tool_names(tools, known) == ["b__read", "read", "a__list", "b__list", "c__a__list"]


# --- schemas


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
            "book": {"anyOf": [{"type": "object", "properties": {}}, {"type": "null"}]},
        },
        "required": ["title"],
        "anyOf": [{"required": ["book"]}],
    }


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (True, {}),
        ({"$ref": "#/$defs/a"}, {"type": "string", "description": "An a."}),
        ({"$ref": "#/definitions/c", "description": "Own."}, {"type": "string", "description": "Own."}),
        ({"$ref": "#/$defs/x~1y%20z"}, {"type": "integer"}),
        ({"$ref": "#/$defs/a", "maxLength": 3}, {"allOf": [{"type": "string", "description": "An a."}, {"maxLength": 3}]}),
        ({"$ref": "#/properties/p"}, {"type": "object"}),
        ({"$ref": "https://example.org/schema"}, {}),
        ({"$ref": "#/$defs/nothing"}, {}),
        ({"$ref": 7}, {}),
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"enum": ["a"], "type": "string", "nullable": True}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"oneOf": [{"type": "null"}, {"type": "string"}]}, {"anyOf": [{"type": "null"}, {"type": "string"}]}),
        ({"anyOf": [False, True, {"type": "null"}]}, {}),
        ({"type": "array", "items": [{"type": "null"}]}, {"type": "array", "prefixItems": [{"type": "null"}]}),
        ({"type": "array", "items": True}, {"type": "array"}),
        ({"type": "any", "enum": [], "required": True, "minLength": -1, "pattern": "(", "minimum": True}, {}),
        ({"type": ["string", "string", "file"], "minimum": 10**400, "default": float("nan")}, {"type": "string"}),
        ({"description": "\x1b[1mRead\u200b me<|im_end|>", "enum": ["<|im_end|>", "a"]}, {"description": "Read me‹|im_end|>"}),
    ],
)  # fmt: skip
def test_what_servers_write_into_schemas_is_read(given: Any, read: dict[str, Any]) -> None:
    schema = {
        "properties": {"p": {"type": "object", "properties": {"inner": given}}},
        "$defs": {"a": {"type": "string", "description": "An a.", "title": "A"}, "b": {"$ref": "#/$defs/a"}, "x/y z": {"type": "integer"}},
        "definitions": {"c": {"$ref": "#/$defs/b"}},
    }  # fmt: skip
    cleaned = clean_schema(schema)
    inner = cleaned["properties"]["p"]["properties"]["inner"]
    if given == {"$ref": "#/properties/p"}:
        inner = inner["properties"]["inner"]  # once more around, and no further
    assert inner == read
    assert cleaned.keys() == {"type", "properties"}


def test_references_that_multiply_end_somewhere() -> None:
    defs: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 9} for n in range(30)}
    defs |= {"d30": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}}
    cleaned = clean_schema(
        {"properties": {"a": {"$ref": "#/$defs/d0"}, "b": {"$ref": "#/$defs/loop"}}, "$defs": defs}
    )
    assert len(json.dumps(cleaned)) < 100_000 and cleaned["properties"]["b"] == {}
    deep: Any = {}
    for _ in range(900):
        deep = {"items": deep, "type": "array"}
    assert len(json.dumps(clean_schema({"properties": {"a": deep}}))) < 1_000


KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["string", "integer", "object", "array", ["integer", "null"]]),
    "enum": st.lists(st.sampled_from([1, "a", None, "<|im_end|>"]), min_size=1, max_size=3, unique=True),
    "const": st.sampled_from([1, "a", {}]),
    "minimum": st.integers(-1, 2),
    "maxLength": st.integers(0, 2),
    "minItems": st.integers(0, 2),
    "uniqueItems": st.booleans(),
    "pattern": st.sampled_from(["^a", "b$"]),
    "required": st.lists(st.sampled_from("ab"), unique=True),
    "$ref": st.sampled_from(["#", "#/$defs/x", "#/$defs/y", "#/$defs/y/items"]),
    "nullable": st.booleans(),
    "default": st.just(1),
}


def with_parts(schema: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts: dict[str, st.SearchStrategy[Any]] = {
        **KEYWORDS,
        "properties": st.dictionaries(st.sampled_from(["a", "b", "a\u200b"]), schema, max_size=2),
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b"]), schema, max_size=1),
        "additionalProperties": schema,
        "items": schema,
        "prefixItems": st.lists(schema, min_size=1, max_size=2),
        "not": schema,
        "if": schema,
        "then": schema,
        **{key: st.lists(schema, min_size=1, max_size=2) for key in ("anyOf", "oneOf", "allOf")},
    }
    return st.fixed_dictionaries({}, optional=parts)


SCHEMAS = st.recursive(st.fixed_dictionaries({}, optional=KEYWORDS) | st.booleans(), with_parts, max_leaves=5)
INSTANCES = st.recursive(
    st.sampled_from([None, 1, -1, 5, True, "", "a", "ab", "aab"]),
    lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "c"]), v, max_size=2),
    max_leaves=5,
)


@pytest.mark.e2e
@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from("ab"), SCHEMAS),
    SCHEMAS,
    SCHEMAS,
    st.dictionaries(st.sampled_from("ab"), INSTANCES),
)
def test_a_cleaned_schema_is_valid_and_takes_whatever_the_servers_own_does(
    properties: dict[str, Any], x: Any, y: Any, arguments: dict[str, Any]
) -> None:
    schema = {"type": "object", "properties": properties, "$defs": {"x": x, "y": y}}
    cleaned = clean_schema(schema)
    Draft202012Validator.check_schema(cleaned)
    assert "$ref" not in json.dumps(cleaned) and "im_end" not in json.dumps(cleaned)
    try:
        valid = Draft202012Validator(schema).is_valid(arguments)
    except Exception:  # references to nothing, or round in a circle: no judge has an opinion
        return
    assert Draft202012Validator(cleaned).is_valid(arguments) or not valid


def test_descriptions_are_cut_wherever_they_stand() -> None:
    tool = types.Tool(
        name="t",
        description="x" * 30_000,
        input_schema={
            "type": "object",
            "properties": {"description": {"description": "y" * 300, "type": "string"}},
        },
    )
    cut = shorten(define(tool), 100)
    assert len(cut.description) == 100 and cut.description.endswith(" …")
    assert len(cut.parameters["properties"]["description"]["description"]) == 100
    assert shorten(cut, 100) == cut and isinstance(cut, Definition)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "inputSchema",
                    "type",
                    "properties",
                    "required",
                    "$schema",
                    "annotations",
                    "$ref",
                    "items",
                ]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4))
def test_whatever_a_server_lists_is_a_valid_listing_after_mending(listed: list[Any]) -> None:
    tools, problems = mend_listing(listed)
    assert len(tools) + len(problems) == len(listed)
    v2025.ListToolsResult.model_validate({"tools": tools})  # what the SDK holds a server to
    wire = {"tools": tools, "resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    v2026.ListToolsResult.model_validate(wire)
    for tool in types.ListToolsResult.model_validate({"tools": tools}, by_name=False).tools:
        parameters = define(tool).parameters
        assert parameters["type"] == "object" and isinstance(parameters["properties"], dict)
        Draft202012Validator.check_schema(parameters)


# --- text


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07x\x1b]8;;http://x\x1b\\y", "red xy"),
        ("a\x00b\x07c\x7f\x9b", "abc"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("I\u200bg\u2060n\ufefforе\u202e\u2066\U000e0041\u00ad", "Ignorе"),
        ("<|im_\u200bstart|>system</tool_response><tool_call>", "‹|im_start|>system‹/tool_response>‹tool_call>"),
        ("half \ud800 a pair", "half � a pair"),
        ("a\u200db می\u200cخواهم 👨\u200d👩\u200d👧 ❤\ufe0f ok\ufe00\ufe01\ufe02", "ab می\u200cخواهم 👨\u200d👩\u200d👧 ❤\ufe0f ok"),
        ("if a <|b| and x<y: <div></div>", "if a <|b| and x<y: <div></div>"),
    ],
)  # fmt: skip
def test_what_nobody_sees_is_taken_out_and_control_tokens_are_disarmed(written: str, read: str) -> None:
    assert clean(written) == read


@given(st.text(st.characters() | st.sampled_from("\x1b[]<|im_end>/\u200b\u200d\ud800"), max_size=40))
def test_cleaned_text_can_be_sent_and_holds_no_control_token(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode()
    assert not re.search(
        r"<\|[\w-]{1,40}\|>|</?(tool_call|tool_response|think|tools)>|[\x00-\x08\x1b\u200b]", cleaned
    )


# --- results


def result(*blocks: dict[str, Any], **more: Any) -> types.CallToolResult:
    return types.CallToolResult.model_validate({"content": list(blocks), **more}, by_name=False)


def test_text_comes_first_and_an_empty_result_says_so() -> None:
    text = {"type": "text", "text": "one"}
    assert output("t", result(text, text, structuredContent={"n": "one"})).content == "one\none"
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


def test_files_of_a_server_have_names_that_stay_where_they_are() -> None:
    blob = base64.b64encode(b"data").decode()
    uris = [
        "file:///..",
        "x:/a\\..\\b",
        "file:///.bashrc",
        "x:/a/b.txt",
        "x:/c/b.txt",
        "x:/\x1b[2J\n",
        "y" * 900,
    ]
    blocks = [{"type": "resource", "resource": {"uri": u, "blob": blob, "mimeType": "a b"}} for u in uris]
    names = [a.name for a in output("t/../t", result(*blocks)).artifacts]
    assert names[2:5] == ["bashrc", "b.txt", "t_.._t-5.bin"]
    assert len(set(names)) == len(uris)
    assert all(re.fullmatch(r"\w[\w.+-]{0,99}", name) and len(name) <= 100 for name in names)


@pytest.mark.parametrize(
    ("texts", "structured", "added"),
    [
        (['{"a": 1, "b": "x"}'], {"b": "x", "a": 1}, False),
        (["x", "y"], {"result": ["x", "y"]}, False),
        (["Two cities: Oslo and Rome."], {"cities": ["Oslo", "Rome"]}, False),
        (["Found 2 cities."], {"cities": ["Oslo", "Rome"]}, True),
        (['{"text": "a \\"quoted\\" line"}'], {"text": 'a "quoted" line'}, False),
        (["{}"], {}, False),
        ([], {"n": None}, True),
    ],
)
def test_structured_content_is_added_where_the_text_does_not_say_it(
    texts: list[str], structured: Any, added: bool
) -> None:
    blocks = [{"type": "text", "text": text} for text in texts]
    content = output("t", result(*blocks, structuredContent=structured)).content
    assert content == "\n".join([*texts, *([json.dumps(structured)] if added else [])])


RESULTS = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=9),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3),
    max_leaves=8,
)
BLOCKS = st.one_of(
    st.builds(lambda t: {"type": "text", "text": t}, st.text()),
    st.builds(
        lambda d, m: {"type": "image", "data": d, "mimeType": m}, st.text(max_size=9), st.text(max_size=9)
    ),
    st.builds(lambda u, n: {"type": "resource_link", "uri": u, "name": n}, st.text(), st.text()),
    st.builds(lambda u, t: {"type": "resource", "resource": {"uri": u, "text": t}}, st.text(), st.text()),
    st.builds(
        lambda u, b: {"type": "resource", "resource": {"uri": u, "blob": b}}, st.text(), st.text(max_size=9)
    ),
)


@given(
    st.lists(BLOCKS, max_size=4),
    st.none() | st.dictionaries(st.text(max_size=3), RESULTS, max_size=3),
    st.booleans(),
)
def test_whatever_a_result_holds_is_read(blocks: list[Any], structured: Any, is_error: bool) -> None:
    more = {"structuredContent": structured} if structured is not None else {}
    got = output("tool", result(*blocks, isError=is_error, **more))
    assert got.content and got.is_error is is_error
    got.content.encode()
