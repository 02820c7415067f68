"""Tools that come from elsewhere: of Qwen-Agent, LangChain and smolagents, and users' own files. Imported when one is used."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import anyio.to_thread

from agentkit.errors import ConfigError, ToolError, UnknownTool
from agentkit.messages import Artifact
from agentkit.tools import Tool, ToolOutput, ToolRegistry, Toolset, closest, function_tool

__all__ = ["adopt", "load_tools", "named", "qwen_tool"]


# -- tools of other frameworks ----------------------------------------------------------------------------


def adopt(thing: Any) -> Tool | None:
    """*thing* as a Tool, where it is a tool of Qwen-Agent, LangChain or smolagents, or the class of one; else None.

    Their sync tools run in a worker thread; what they raise is told to the model. Raises `ConfigError` for a class that
    needs arguments, and for a tool that only works inside its own framework.
    """
    kind = thing if isinstance(thing, type) else type(thing)
    # by name: if its framework has not been imported, it is no tool of that framework
    make = next((_MAKERS[key] for c in kind.__mro__ if (key := _key(c)) in _MAKERS), None)
    if make is None:
        return None
    return make(_instance(thing) if isinstance(thing, type) else thing)


def _key(cls: type) -> tuple[str, str]:
    return cls.__module__.partition(".")[0], cls.__name__


def _is(value: Any, package: str, name: str) -> bool:
    return any(_key(c) == (package, name) for c in type(value).__mro__)


def _instance(cls: Callable[..., Any], *config: Mapping[str, Any]) -> Any:
    try:
        return cls(*config)
    except Exception as exc:
        name = getattr(cls, "name", "") or getattr(cls, "__name__", "tool")
        raise ConfigError(
            f"The tool {name} cannot be made: {type(exc).__name__}: {exc}. "
            f"Pass it ready made, or with its settings as {{'name': {str(name)!r}, …}} if it is Qwen-Agent's."
        ) from exc


def _tool(name: str, description: str, parameters: Mapping[str, Any], handler: Any) -> Tool:
    from agentkit.schema import simplify

    schema = simplify({k: v for k, v in parameters.items() if k != "description"})
    return Tool(re.sub(r"[^\w-]+", "_", name), inspect.cleandoc(description or ""), schema, handler)


def _in_thread(fn: Callable[[], Any]) -> Awaitable[Any]:
    return anyio.to_thread.run_sync(fn, abandon_on_cancel=True)


def _wrong(tool: str, schema: Mapping[str, Any], problems: Sequence[str]) -> ToolError:
    from agentkit.schema import wrong_arguments

    return ToolError(wrong_arguments(tool, schema, problems))


def _qwen(made: Any) -> Tool:
    about = made.function
    parameters = about["parameters"]
    if not isinstance(parameters, Mapping):  # its older form: a list of arguments
        parameters = {
            "type": "object",
            "properties": {
                p["name"]: {k: p[k] for k in p if k not in ("name", "required")} for p in parameters
            },
            "required": [p["name"] for p in parameters if p.get("required")],
        }
    takes = inspect.signature(made.call).parameters
    # its agents pass the conversation, and some tools count on that
    context: dict[str, Any] = {"messages": []}
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        context = {k: v for k, v in context.items() if k in takes}

    async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
        # as text: that is how its agents pass them, and tools that parse it themselves are common
        text = json.dumps(arguments, ensure_ascii=False)
        try:
            value = await _in_thread(lambda: made.call(text, **context))
        except Exception as exc:
            if type(exc).__module__.startswith("jsonschema"):  # its text has the whole schema in it
                raise _wrong(adopted.name, adopted.parameters, [str(getattr(exc, "message", exc))]) from exc
            raise
        if isinstance(value, list) and value and all(_is(v, "qwen_agent", "ContentItem") for v in value):
            value = [(v.type, v.value) for v in value]
        return _output(value, adopted.name)

    adopted = _tool(about["name"], about["description"], parameters, handler)
    return adopted


def _langchain(made: Any) -> Tool:
    shown = made.tool_call_schema
    if isinstance(shown, Mapping):
        parameters, hidden = dict(shown), set[str]()
    elif made.args_schema is None and hasattr(made, "func"):  # its oldest form: one text
        parameters, hidden = {"type": "object", "properties": made.args, "required": list(made.args)}, set()
    else:
        # pydantic 2 and 1
        parameters = shown.model_json_schema() if hasattr(shown, "model_json_schema") else _v2(shown.schema())
        fields = _fields(made.get_input_schema())
        injected = {n: f for n, f in fields.items() if n not in _fields(shown)}
        for name, field in injected.items():
            needed = field.is_required() if hasattr(field, "is_required") else field.required
            if needed and "InjectedToolCallId" not in repr(field):
                raise ConfigError(
                    f"The LangChain tool {made.name} gets its argument {name!r} from LangChain's own agent; wrap it in "
                    "a function that supplies it, with @tool on that."
                )
        hidden = {a for n, f in injected.items() for a in (n, f.alias) if a}
        hidden |= set(getattr(made, "_injected_args_keys", ()))
    title = getattr(made.args_schema, "__name__", None)

    async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
        # what the framework fills in is not for the model to say
        said = {k: v for k, v in arguments.items() if k not in hidden}
        call = {"type": "tool_call", "id": "call", "name": made.name, "args": said}
        try:
            value = await _invoke(made, call)
        except Exception as exc:
            if _is(exc, "langchain_core", "ToolException"):
                raise ToolError(str(exc)) from exc
            if title is not None and getattr(exc, "title", None) == title and hasattr(exc, "errors"):
                problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()[:5]]
                raise _wrong(adopted.name, adopted.parameters, problems) from exc
            raise
        if not _is(value, "langchain_core", "ToolMessage"):
            return _output(value, adopted.name)
        said_back = _output(value.content, adopted.name)
        made_too = () if value.artifact is None else (_artifact(value.artifact, adopted.name),)
        return ToolOutput(said_back.content, value.status == "error", (*said_back.artifacts, *made_too))

    adopted = _tool(made.name, made.description, parameters, handler)
    return adopted


def _fields(model: Any) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = model.model_fields if hasattr(model, "model_fields") else model.__fields__
    return fields


def _v2(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Pydantic 1's schema, its references as pydantic 2 writes them."""
    moved: dict[str, Any] = json.loads(json.dumps(schema).replace('"#/definitions/', '"#/$defs/'))
    if "definitions" in moved:
        moved["$defs"] = moved.pop("definitions")
    return moved


async def _invoke(made: Any, call: Mapping[str, Any]) -> Any:
    root = next(c for c in type(made).__mro__ if _key(c) == ("langchain_core", "BaseTool"))
    own = type(made)._arun is not root._arun  # type: ignore[attr-defined]
    if made.coroutine is not None if hasattr(made, "coroutine") else own:
        try:
            return await made.ainvoke(call)
        except NotImplementedError:
            pass  # many have an async half that only says this
    return await _in_thread(lambda: made.invoke(call))


def _smolagents(made: Any) -> Tool:
    types = "string boolean integer number array object null".split()
    properties = {
        name: {
            **(
                {"type": about["type"]} if about.get("type") in types else {}
            ),  # "any", "image", "audio" are its own
            **{k: about[k] for k in ("description", "enum", "items", "default") if k in about},
        }
        for name, about in made.inputs.items()
    }
    required = [name for name, about in made.inputs.items() if not about.get("nullable")]
    parameters = {"type": "object", "properties": properties, "required": required}

    async def handler(arguments: Mapping[str, Any]) -> ToolOutput:
        return _output(await _in_thread(lambda: made(**arguments)), made.name)

    return _tool(made.name, made.description, parameters, handler)


_MAKERS: dict[tuple[str, str], Callable[[Any], Tool]] = {
    ("qwen_agent", "BaseTool"): _qwen,
    ("langchain_core", "BaseTool"): _langchain,
    ("smolagents", "Tool"): _smolagents,
}


def _output(value: Any, tool: str) -> ToolOutput:
    """What a foreign tool returned: its text for the model, its pictures and files as artifacts.

    Both frameworks have a form of parts, here pairs of a kind and a value, or mappings with a "type".
    """
    from agentkit.schema import to_text

    if isinstance(value, ToolOutput):
        return value
    if not (isinstance(value, list) and value and all(isinstance(v, tuple) or _is_block(v) for v in value)):
        return ToolOutput(to_text(value))
    texts, artifacts = list[str](), list[Artifact]()
    for part in value:
        kind, content = part if isinstance(part, tuple) else _of_block(part)
        if kind == "text":
            texts.append(str(content))
        elif (artifact := _file(kind, str(content), f"{tool}_{len(artifacts) + 1}")) is not None:
            texts.append(f"[{kind}: {artifact.name}]")
            artifacts.append(artifact)
        else:
            texts.append(f"[{kind}: {content}]")
    return ToolOutput("\n".join(texts), artifacts=tuple(artifacts))


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") in ("text", "image", "image_url", "audio", "file")


def _of_block(block: Mapping[str, Any]) -> tuple[str, str]:
    """LangChain's content blocks, and those of the chat-completions API that it takes too."""
    if block["type"] == "text":
        return "text", block.get("text", "")
    if block["type"] == "image_url":
        image = block["image_url"]
        return "image", image["url"] if isinstance(image, Mapping) else image
    data = block.get("base64") or block.get("data")
    mime = block.get("mime_type") or "application/octet-stream"
    return block["type"], f"data:{mime};base64,{data}" if data else block.get("url") or block.get(
        "file_id"
    ) or ""


def _file(kind: str, value: str, name: str) -> Artifact | None:
    """A data: address or a file's path as an artifact; None for an address elsewhere, which the model can be told."""
    from mimetypes import guess_extension, guess_type

    if match := re.match(r"data:([^;,]*)[^,]*;base64,", value):
        import base64

        mime = match[1] or "application/octet-stream"
        try:
            data = base64.b64decode(value[match.end() :])
        except ValueError:
            return None
        return Artifact(name + (guess_extension(mime) or ""), mime, data, size=len(data))
    path = Path(value.removeprefix("file://"))
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        return None
    return Artifact(path.name, guess_type(path.name)[0] or f"{kind}/*", path=str(path), size=size)


def _artifact(value: Any, tool: str) -> Artifact:
    """What a LangChain tool made for the program and not for the model."""
    from pydantic_core import to_json

    if isinstance(value, Artifact):
        return value
    if isinstance(value, bytes):
        return Artifact(f"{tool}.bin", "application/octet-stream", value, size=len(value))
    data = value.encode() if isinstance(value, str) else to_json(value, fallback=str)
    name, mime = (
        (f"{tool}.txt", "text/plain") if isinstance(value, str) else (f"{tool}.json", "application/json")
    )
    return Artifact(name, mime, data, size=len(data))


# -- by name ----------------------------------------------------------------------------------------------

# What Qwen-Agent brings along and we do not: whoever asks for one is told how to get it.
_QWEN = frozenset(
    "amap_weather storage simple_doc_parser doc_parser front_page_search hybrid_search keyword_search vector_search "
    "extract_doc_vocabulary image_gen retrieval image_zoom_in_tool image_search web_extractor".split()
)


def qwen_tool(name: str, config: Mapping[str, Any] | None = None) -> Tool:
    """The tool that Qwen-Agent has registered as *name*, made with *config*, as an entry of its `function_list` is.

    Raises `ConfigError` where Qwen-Agent is not installed, `UnknownTool` where it has no such tool.
    """
    registered = _registered(name)
    if name not in registered:
        hint = closest(name, registered)
        raise UnknownTool(
            f"Qwen-Agent has no tool {name!r}{f'; did you mean {hint!r}?' if hint else '.'} "
            f"It has: {', '.join(sorted(registered))}."
        )
    return _qwen(_instance(registered[name], *([dict(config)] if config else [])))


def _registered(wanted: str) -> Mapping[str, Any]:
    try:
        registry: Mapping[str, Any] = importlib.import_module("qwen_agent.tools").TOOL_REGISTRY
    except ImportError as exc:
        raise ConfigError(
            f"{wanted!r} is no tool of agentkit's, and Qwen-Agent cannot be imported ({exc}); "
            "its tools need: pip install 'agentkit[qwen-agent]'."
        ) from exc
    return registry


def named(name: str, config: Mapping[str, Any] | None = None) -> list[Tool | Toolset]:
    """What a text in `tools` stands for: an installed tool, a tool of Qwen-Agent's, or a place as in `load_tools`.

    "qwen:web_extractor" is always Qwen-Agent's; "web_extractor" only where we have none of that name. With a *config*
    it is Qwen-Agent's: ours have none.
    """
    if name.startswith("qwen:") or config:
        return [qwen_tool(name.removeprefix("qwen:"), config)]
    if name.endswith(".py") or ":" in name or os.sep in name:
        return load_tools(name)
    registry = ToolRegistry()
    if name not in registry.names():
        if Path(name).is_dir():
            return load_tools(name)
        there = "qwen_agent" in sys.modules or importlib.util.find_spec("qwen_agent") is not None
        if name in _QWEN or (there and name in _registered(name)):
            return [qwen_tool(name)]
    return [registry.get(name)]


# -- users' own files -------------------------------------------------------------------------------------


def load_tools(place: str | os.PathLike[str]) -> list[Tool | Toolset]:
    """The tools in a Python file, in the files of a folder, or at "module:name" ("file.py:name").

    A file's tools are its `Tool`s (functions with @tool), `Toolset`s and tools of other frameworks that stand at its
    top under a public name and were not imported; or else those that its list `TOOLS`, or its `__all__`, names. In a
    folder, tests and files whose names begin with _ are left out. A file runs once, however often it is named; it can
    import the files beside it. Raises `ConfigError` with the line for one that fails, and where there is no tool.
    """
    text = os.fspath(place)
    where, colon, attribute = text.rpartition(":")
    if colon and re.fullmatch(r".*\.py|\w+(\.\w+)*", where) and not Path(text).exists():
        return _at(where, attribute)
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        files = sorted(
            f
            for f in path.glob("*.py")
            if not re.match(r"_|test_|.*_test\.py|conftest\.py|setup\.py", f.name)
        )
    elif path.is_file():
        files = [path]
    else:
        raise ConfigError(f"There is no file or folder of tools at {text}.")
    found: list[Tool | Toolset] = []
    for file in files:
        with _explained(file):
            module = _module(file)
        found += [t for t in _tools_of(module, file) if not any(t is f for f in found)]
    if not found:
        raise ConfigError(
            f"There is no tool in {text}: a function becomes one with `@tool` (from agentkit import tool), and what the "
            "file imports is one only where its list TOOLS has it."
        )
    return found


def _at(where: str, attribute: str) -> list[Tool | Toolset]:
    """The tool, or the list of tools, that is called *attribute* in a file or a module."""
    top, _, rest = where.partition(".")
    file = Path(where).expanduser().absolute() if where.endswith(".py") else None
    if file is None and importlib.util.find_spec(top) is None:
        file = _neighbour(Path.cwd(), top)  # the command's own path does not have this folder
    with _explained(file or where):
        module = _module(file) if file else importlib.import_module(where)
        if file and rest and not where.endswith(".py"):
            module = importlib.import_module(f"{module.__name__}.{rest}")
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ConfigError(f"{where} has no {attribute!r}.")
        value = getattr(value, part)
    return _listed(value, f"{where}:{attribute}")


def _listed(value: Any, where: str) -> list[Tool | Toolset]:
    """Tools that somebody named: a plain function is one, too."""
    taken: list[Tool | Toolset] = []
    for one in value if isinstance(value, list | tuple) else (value,):
        made = _taken(one)
        taken.append(made if made is not None else function_tool(one))
    if not taken:
        raise ConfigError(f"{where} is an empty list; put tools into it.")
    return taken


def _taken(value: Any) -> Tool | Toolset | None:
    if isinstance(value, Tool) or (isinstance(value, Toolset) and not isinstance(value, type)):
        return value
    return adopt(value)


def _tools_of(module: ModuleType, file: Path) -> list[Tool | Toolset]:
    names = vars(module)
    if "TOOLS" in names:
        return _listed(names["TOOLS"], f"TOOLS in {file}")
    public = names.get("__all__")
    if public is None:
        brought = set(_bound_by_imports(ast.parse(file.read_bytes()).body))
        public = [n for n in names if not n.startswith("_") and n not in brought]
    values = {id(v): v for v in (names.get(n) for n in public)}.values()
    kinds = {type(v) for v in values}
    return [
        made
        for v in values
        # a class is one for those that need nothing, unless the file has made its own of it, or it is to be derived from
        if not (
            isinstance(v, type) and (v in kinds or inspect.isabstract(v) or v.__module__ != module.__name__)
        )
        and (made := _taken(v)) is not None
    ]


def _bound_by_imports(body: Sequence[ast.AST]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((a.asname or a.name).partition(".")[0] for a in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _bound_by_imports(list(ast.iter_child_nodes(node)))


def _module(file: Path) -> ModuleType:
    """The module of a user's file, run when it is first asked for.

    It has its path for a name, so that it is nobody else's. A file of a package is loaded with its package.
    """
    file = file.resolve()
    package = file.name == "__init__.py"
    if not package and (file.parent / "__init__.py").is_file():
        parent = _module(file.parent / "__init__.py")
        return importlib.import_module(f"{parent.__name__}.{file.stem}")
    name = _name(file)
    if name in sys.modules:
        return sys.modules[name]
    search = [str(file.parent)] if package else None
    loader = SourceFileLoader(name, str(file)) if package else _Loader(name, str(file))
    spec = importlib.util.spec_from_file_location(
        name, file, loader=loader, submodule_search_locations=search
    )
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _name(file: Path) -> str:
    path = file.parent if file.name == "__init__.py" else file.with_suffix("")
    return str(path).replace(".", "%2E")  # a dot would make it part of a package


@contextmanager
def _explained(what: Path | str) -> Iterator[None]:
    """What goes wrong while a user's file runs, as one sentence with the line that is theirs."""
    try:
        yield
    except (Exception, SystemExit) as exc:
        where, line, said = str(what), None, str(exc) or "no reason given"
        for frame, at in walk_tb(exc.__traceback__):
            name = frame.f_code.co_filename
            if isinstance(what, Path) and os.path.dirname(name) == os.path.dirname(what.resolve()):
                where, line = name, at
        if isinstance(exc, SyntaxError) and exc.filename:
            where, line, said = exc.filename, exc.lineno, exc.msg
        at_line = f"{where}, line {line}" if line else where
        raise ConfigError(
            f"{at_line}: the tools cannot be loaded: {type(exc).__name__}: {said.rstrip('.')}."
        ) from exc


def _neighbour(folder: Path, name: str) -> Path | None:
    if not name or name in sys.stdlib_module_names:
        return None
    return next((f for f in (folder / f"{name}.py", folder / name / "__init__.py") if f.is_file()), None)


class _Loader(SourceFileLoader):
    """Runs a user's file so that it finds the files beside it by their names, as a script would, and nobody else does.

    The folder on `sys.path` would show them to everybody, and two folders' `common.py` would be one.
    """

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        me = Path(self.path)
        top, _, rest = name.partition(".")
        # requests.py that imports requests means the installed one
        beside = _neighbour(me.parent, top) if level == 0 and top != me.stem else None
        if beside is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = _module(beside)
        if rest or fromlist:  # parts of a package may have to be imported yet
            full = f"{module.__name__}.{rest}" if rest else module.__name__
            found = builtins.__import__(full, globals, locals, fromlist or ())
            return found if fromlist else module
        return module
