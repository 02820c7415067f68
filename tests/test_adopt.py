"""Tools of other frameworks, the real ones, and users' own files, as the model calls them."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from agentkit import Agent, ConfigError, Tool, UnknownTool
from agentkit.adopt import adopt, load_tools, qwen_tool
from agentkit.agent import resolve_tools
from agentkit.messages import ToolResult
from agentkit.testing import ScriptedEngine


def told(tools: Any, name: str, **arguments: Any) -> ToolResult:
    """What a model that calls the tool is told."""
    call = json.dumps({"name": name, "arguments": arguments})
    engine = ScriptedEngine([f"<tool_call>\n{call}\n</tool_call>", "Done."])
    result = Agent(engine, tools=tools).run_sync("?")
    (answer,) = [r for m in result.messages for r in m.results]
    return answer


# -- Qwen-Agent -------------------------------------------------------------------------------------------


@pytest.fixture
def qwen() -> Iterator[Any]:
    """Qwen-Agent, with two tools that a program has registered."""
    base: Any = pytest.importorskip("qwen_agent.tools.base", reason="pip install 'agentkit[qwen-agent]'")
    picture = pytest.importorskip("qwen_agent.llm.schema").ContentItem

    class Paint(base.BaseTool):  # type: ignore[misc]
        description = "Paint a picture."
        parameters: ClassVar[Any] = [
            {"name": "prompt", "type": "string", "description": "Of what.", "required": True},
            {"name": "size", "type": "integer"},
        ]

        def call(self, params: str | dict[str, Any], **kwargs: Any) -> Any:
            assert isinstance(params, str) and kwargs.pop("messages") == []  # as its own agents call it
            said = json.loads(params)
            if said["prompt"] == "nothing":
                raise ValueError("there is nothing to paint")
            return {"of": said["prompt"], "size": said.get("size"), "key": self.cfg.get("api_key")}

    class Draw(base.BaseToolWithFileAccess):  # type: ignore[misc]
        name = "draw"
        description = "Draw."
        parameters: ClassVar[Any] = {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
        }

        def call(self, params: str | dict[str, Any], files: Any = None) -> Any:
            self._verify_json_format_args(params)
            assert threading.current_thread() is not threading.main_thread()
            return [picture(text="here"), picture(image="data:image/png;base64,AAAA")]

    base.register_tool("paint")(Paint)
    base.register_tool("draw")(Draw)
    yield base
    del base.TOOL_REGISTRY["paint"], base.TOOL_REGISTRY["draw"]


@pytest.mark.parametrize("how", ["instance", "class", "name", "qwen:name", "config"])
def test_a_qwen_agent_tool_is_taken_in_every_form_its_function_list_has(qwen: Any, how: str) -> None:
    cls = qwen.TOOL_REGISTRY["paint"]
    entry: Any = {
        "instance": cls({"api_key": "k"}),
        "class": cls,
        "name": "paint",
        "qwen:name": "qwen:paint",
        "config": {"name": "paint", "api_key": "k"},
    }[how]
    answer = told([entry], "paint", prompt="a cat", size="3")
    key = "k" if how in ("instance", "config") else None
    assert not answer.is_error and json.loads(answer.content) == {"of": "a cat", "size": 3, "key": key}


def test_a_qwen_agent_tools_list_of_arguments_is_a_schema(qwen: Any) -> None:
    made = adopt(qwen.TOOL_REGISTRY["paint"])
    assert made is not None and made.effects is None and made.description == "Paint a picture."
    assert made.parameters == {
        "type": "object",
        "properties": {"prompt": {"type": "string", "description": "Of what."}, "size": {"type": "integer"}},
        "required": ["prompt"],
    }


def test_what_a_qwen_agent_tool_raises_is_told_to_the_model(qwen: Any) -> None:
    answer = told(["paint"], "paint", prompt="nothing")
    assert answer.is_error and answer.content == "paint failed with ValueError: there is nothing to paint"
    assert "prompt is missing" in told(["paint"], "paint").content
    answer = told(["draw"], "draw", n="many")
    assert answer.is_error and answer.content.startswith("Wrong arguments for draw: n must be an integer")


def test_a_qwen_agent_tools_pictures_are_artifacts(qwen: Any) -> None:
    answer = told(["draw"], "draw", n=1)
    assert answer.content == "here\n[image: draw_1.png]"
    assert [(a.name, a.mime, a.data) for a in answer.artifacts] == [("draw_1.png", "image/png", b"\0\0\0")]


def test_tools_that_qwen_agent_brings_work_by_name(qwen: Any, tmp_path: Path) -> None:
    storage: Any = {"name": "storage", "storage_root_path": str(tmp_path)}
    assert "Successfully saved" in told([storage], "storage", operate="put", key="a", value="1").content
    assert told([storage], "storage", operate="get", key="a").content == "1"
    with pytest.raises(UnknownTool, match="did you mean 'web_extractor'"):
        qwen_tool("web_extracter")
    with pytest.raises(ConfigError, match="image_gen cannot be made: ValueError: llm_cfg is required"):
        Agent("demo", tools=["image_gen"])


def test_our_own_tool_wins_over_qwen_agents_of_the_same_name(qwen: Any) -> None:
    (mine,) = resolve_tools(["code_interpreter"])
    assert type(mine).__module__.startswith("agentkit_tools")
    (theirs,) = resolve_tools([{"name": "web_search", "type": "serper"}])  # ours has no settings
    assert isinstance(theirs, Tool) and theirs.name == "web_search"


def test_without_qwen_agent_its_tools_names_say_how_to_get_it() -> None:
    if importlib.util.find_spec("qwen_agent") is not None:
        pytest.skip("it is installed")
    with pytest.raises(ConfigError, match=r"pip install 'agentkit\[qwen-agent\]'"):
        Agent("demo", tools=["web_extractor"])


# -- LangChain --------------------------------------------------------------------------------------------


@pytest.fixture
def langchain() -> Any:
    return pytest.importorskip("langchain_core.tools", reason="langchain-core is not installed")


def test_a_langchain_tool_keeps_its_schema_and_its_types(langchain: Any) -> None:
    @langchain.tool  # type: ignore[untyped-decorator]
    def days(months: list[int], year: int = 2026) -> dict[str, Any]:
        """Say what it got."""
        return {"kind": type(months[0]).__name__, "year": year, "main": _in_main()}

    made = adopt(days)
    assert made is not None and made.description == "Say what it got." and made.effects is None
    assert made.parameters == {
        "type": "object",
        "properties": {
            "months": {"type": "array", "items": {"type": "integer"}},
            "year": {"type": "integer", "default": 2026},
        },
        "required": ["months"],
    }
    assert json.loads(told([days], "days", months=["2"]).content) == {
        "kind": "int",
        "year": 2026,
        "main": False,
    }


def _in_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def test_an_async_langchain_tool_runs_in_the_loop(langchain: Any) -> None:
    @langchain.tool  # type: ignore[untyped-decorator]
    async def where() -> bool:
        """Where it runs."""
        return _in_main()

    assert told([where], "where").content in ("true", "True")


def test_a_langchain_class_whose_async_half_only_refuses_runs_in_a_thread(langchain: Any) -> None:
    class Old(langchain.BaseTool):  # type: ignore[misc]
        name: str = "old tool"
        description: str = "An old one."

        def _run(self, query: str) -> str:
            return query.upper()

        async def _arun(self, query: str) -> str:
            raise NotImplementedError("no async")

    assert told([Old], "old_tool", query="x").content == "X"
    assert (
        told([langchain.Tool(name="one", func=str.upper, description="d")], "one", tool_input="y").content
        == "Y"
    )


@pytest.mark.parametrize("version", ["pydantic 1", "JSON schema"])
def test_a_langchain_tool_may_have_another_kind_of_schema(langchain: Any, version: str) -> None:
    from pydantic import v1

    schema: Any = v1.create_model("Old", inner=(v1.create_model("Inner", z=(int, ...)), ...))
    if version == "JSON schema":
        inner = {"type": "object", "properties": {"z": {"type": "integer"}}, "required": ["z"]}
        schema = {"type": "object", "properties": {"inner": inner}, "required": ["inner"], "title": "Old"}
    made = langchain.StructuredTool.from_function(
        func=lambda inner: dict(inner)["z"] + 1, name="add", description="d", args_schema=schema
    )
    assert told([made], "add", inner={"z": 1}).content == "2"
    adopted = adopt(made)
    assert (
        adopted is not None
        and adopted.parameters["properties"]["inner"]["properties"]["z"]["type"] == "integer"
    )


def test_what_langchain_injects_is_hidden_from_the_model_and_not_its_to_set(langchain: Any) -> None:
    def who(a: Any, call_id: Any, user: Any = "nobody") -> str:
        """Who it is."""
        return f"{user} {bool(call_id)}"

    call_id, injected = langchain.InjectedToolCallId, langchain.InjectedToolArg
    who.__annotations__ = {"a": int, "call_id": Annotated[str, call_id], "user": Annotated[str, injected]}
    made = adopt(langchain.tool(who))
    assert made is not None and list(made.parameters["properties"]) == ["a"]
    assert told([made], "who", a=1, user="admin").content == "nobody True"

    def state(a: Any, state: Any) -> str:
        """Needs what only LangChain's agent has."""
        return ""

    state.__annotations__ = {"a": int, "state": Annotated[dict, injected]}
    with pytest.raises(ConfigError, match="gets its argument 'state' from LangChain's own agent"):
        adopt(langchain.tool(state))


def test_a_langchain_tools_errors_and_artifacts_come_back(langchain: Any) -> None:
    @langchain.tool(response_format="content_and_artifact")  # type: ignore[untyped-decorator]
    def find(n: int) -> tuple[str, list[int]]:
        """Find some."""
        if n < 0:
            raise langchain.ToolException("n must not be negative")
        if n == 0:
            raise KeyError("zero")
        return f"{n} found", list(range(n))

    answer = told([find], "find", n=2)
    assert answer.content == "2 found" and not answer.is_error
    assert [(a.name, a.data) for a in answer.artifacts] == [("find.json", b"[0,1]")]
    answer = told([find], "find", n=-1)
    assert answer.is_error and answer.content == "n must not be negative"
    assert told([find], "find", n=0).content == "find failed with KeyError: 'zero'"
    assert told([find], "find", n="x").content.startswith("Wrong arguments for find: n must be an integer")


# -- smolagents -------------------------------------------------------------------------------------------


def test_a_smolagents_tool_is_taken() -> None:
    smolagents: Any = pytest.importorskip("smolagents", reason="smolagents is not installed")

    class Twice(smolagents.Tool):  # type: ignore[misc]
        name = "twice"
        description = "Double it."
        inputs: Mapping[str, Any] = {
            "n": {"type": "integer", "description": "What."},
            "more": {"type": "any", "description": "Any.", "nullable": True},
        }
        output_type = "integer"

        def forward(self, n: int, more: Any = None) -> int:
            return n * 2

    made = adopt(Twice())
    assert made is not None and made.parameters["required"] == ["n"]
    assert told([Twice], "twice", n="4").content == "8"


def test_what_is_no_tool_is_not_adopted() -> None:
    class BaseTool:
        pass

    assert adopt(BaseTool()) is None and adopt(BaseTool) is None and adopt("x") is None


# -- users' own files -------------------------------------------------------------------------------------

TOOL = '''
from agentkit import tool

@tool
def {name}(n: int) -> int:
    """Add something."""
    {imports}
    return n + {more}
'''


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_is_its_files_tools_without_tests_and_private_ones(tmp_path: Path) -> None:
    for name in ("b", "a", "_private", "test_a", "a_test", "conftest"):
        write(tmp_path / f"{name}.py", TOOL.format(name=f"{name}_tool", imports="", more=1))
    assert [t.name for t in load_tools(tmp_path) if isinstance(t, Tool)] == ["a_tool", "b_tool"]
    assert told([str(tmp_path)], "b_tool", n=1).content == "2"
    assert told([tmp_path / "a.py"], "a_tool", n=2).content == "3"
    assert told([f"{tmp_path}/a.py:a_tool"], "a_tool", n=3).content == "4"


def test_a_file_imports_those_beside_it_also_later_and_nobody_else_sees_them(tmp_path: Path) -> None:
    for folder, more in (("one", 1), ("two", 2)):
        write(tmp_path / folder / "common.py", f"import deeper\nMORE = deeper.MORE + {more}\n")
        write(tmp_path / folder / "deeper.py", "MORE = 10\n")
        write(tmp_path / folder / "box" / "__init__.py", "from .inner import LESS\n")
        write(tmp_path / folder / "box" / "inner.py", "LESS = 100\n")
        write(tmp_path / folder / "box" / "other.py", "MOST = 1000\n")
        more_of = "common.MORE + box.inner.LESS + other.MOST"
        late = "import common, box.inner\n    from box import other"
        write(tmp_path / folder / "add.py", TOOL.format(name="add", imports=late, more=more_of))
    before = list(sys.path)
    assert told([tmp_path / "one"], "add", n=0).content == "1111"
    assert told([tmp_path / "two"], "add", n=0).content == "1112"
    assert sys.path == before and not {"common", "deeper", "box", "add"} & set(sys.modules)


def test_a_file_may_be_called_like_a_module_it_needs(tmp_path: Path) -> None:
    text = TOOL.format(name="dump", imports="import json, click", more="len(json.dumps([click.__name__]))")
    write(tmp_path / "click.py", text)
    write(tmp_path / "more" / "json.py", text.replace("dump(", "other("))
    assert told([tmp_path / "click.py"], "dump", n=0).content == "9"
    assert told([tmp_path / "more"], "other", n=0).content == "9"


def test_a_file_runs_once_however_it_is_named(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    write(tmp_path / "a.py", "import b\n" + TOOL.format(name="a", imports="", more=1))
    log = f"with open({str(ran)!r}, 'a') as file:\n    file.write('.')\n"
    write(tmp_path / "b.py", log + TOOL.format(name="b", imports="", more=1))
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (tmp_path, tmp_path / "b.py", tmp_path / "link", f"{tmp_path}/b.py:b"):
        load_tools(place)
    assert ran.read_text() == "."


def test_what_a_file_imports_is_only_taken_where_it_says_so(tmp_path: Path) -> None:
    text = "from agentkit_tools.calculator import calculator\n"
    path = write(
        tmp_path / "own.py", text + TOOL.format(name="mine", imports="", more=1) + "_hidden = mine\n"
    )
    assert [t.name for t in load_tools(path) if isinstance(t, Tool)] == ["mine"]
    path = write(
        tmp_path / "listed.py", text + "def plain(a: int) -> int: return a\nTOOLS = [calculator, plain]\n"
    )
    assert [t.name for t in load_tools(path) if isinstance(t, Tool)] == ["calculator", "plain"]
    path = write(tmp_path / "public.py", text + "import json\n__all__ = ['calculator', 'json']\n")
    assert [t.name for t in load_tools(path) if isinstance(t, Tool)] == ["calculator"]
    path = write(tmp_path / "none.py", text + "def plain(a: int) -> int: return a\n")
    with pytest.raises(ConfigError, match=r"no tool in .*none.py: a function becomes one with `@tool`"):
        load_tools(path)


def test_a_file_of_a_package_is_imported_as_part_of_it(tmp_path: Path) -> None:
    write(tmp_path / "pack" / "__init__.py", "MORE = 5\n")
    write(
        tmp_path / "pack" / "sub.py",
        "from . import MORE\n" + TOOL.format(name="add", imports="", more="MORE"),
    )
    assert told([tmp_path / "pack"], "add", n=1).content == "6"


def test_a_foreign_class_of_a_file_is_taken_once_and_its_base_is_not(langchain: Any, tmp_path: Path) -> None:
    text = (
        "from langchain_core.tools import BaseTool\n"
        "class {0}(BaseTool):\n    name: str = '{0}'\n    description: str = 'd'\n"
        "    def _run(self, q: str) -> str: return q\n"
    )
    path = write(
        tmp_path / "chain.py", text.format("One") + text.format("Two") + "two = Two(name='second')\n"
    )
    assert [t.name for t in load_tools(path) if isinstance(t, Tool)] == ["One", "second"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "x = 1\nimport no_such_module\n",
            "line 2: the tools cannot be loaded: ModuleNotFoundError: No module",
        ),
        ("def f(:\n", "line 1: the tools cannot be loaded: SyntaxError"),
        ("import sys\n\nsys.exit(3)\n", "line 3: the tools cannot be loaded: SystemExit: 3"),
        ("import broken\n", "broken.py, line 2: the tools cannot be loaded: ZeroDivisionError"),
        ("try:\n    import missing_one\nexcept ImportError:\n    pass\n", "There is no tool in"),
    ],
)
def test_a_file_that_fails_is_one_sentence_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path / "broken.py", "\n1 / 0\n")
    write(tmp_path / "missing_one.py", "import no_such_module\n")
    path = write(tmp_path / "wrong.py", text)
    with pytest.raises(ConfigError) as caught:
        load_tools(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_failed_can_be_mended_and_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_tools(write(tmp_path / "mine.py", "import no_such_module\n"))
    assert len(load_tools(write(tmp_path / "mine.py", TOOL.format(name="mine", imports="", more=1)))) == 1


def test_a_place_where_nothing_is_says_so(tmp_path: Path) -> None:
    for place, said in (
        (f"{tmp_path}/no.py", "no file or folder of tools"),
        ("no_such_module_here:x", "No module named 'no_such_module_here'"),
        ("./no_folder:x", "no file or folder of tools"),
        (f"{tmp_path}/no.py:x", "FileNotFoundError"),
        ("json:nothing", "json has no 'nothing'"),
        ("nonsense", "No tool is named 'nonsense'"),
    ):
        with pytest.raises((ConfigError, UnknownTool), match=said):
            Agent("demo", tools=[place])
    assert told(["agentkit_tools.calculator:calculator"], "calculator", expression="1+1").content == "2"
