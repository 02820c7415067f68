"""Calls that a model writes as Python: a block of code that calls tools, which is read, and never run; or a program, for a tool
that runs programs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agentkit.parsing.calls import Schemas, Unreadable, Wanted

__all__ = ["code_calls", "parameter_order"]

_BLOCK = re.compile(r"```(?:python|py|tool_code|tool_call)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_LONGEST = 20_000  # characters of a block; a longer one is a program
_DEEPEST = 50  # brackets within brackets
_RUNS_PYTHON = re.compile(r"python|interpreter", re.IGNORECASE)


def code_calls(text: str, tools: Schemas) -> list[Wanted | Unreadable]:
    """What *text* asks for in Python: a program for the tool that runs them, calls, or a call gone wrong.

    A program is a text that is one block of Python, does more than call tools, and shows something: a model that was trained on code
    answers a question about data with the program that would tell. Gone wrong is a block that begins with a tool's name and
    is no Python.
    """
    code = _only_block(text)
    body = _parsed(code)
    runs = _that_runs_python(tools) if body else None
    if runs is not None and _shows(body) and not _only_calls(body, tools):
        return [Wanted(runs, {"code": code})]
    made: list[Wanted | Unreadable] = [*_made_calls(text, tools)]
    if code and not (made or body) and _is_broken(code, tools):
        made.append(Unreadable(text.strip(), "it is not a Python call"))
    return made


def _made_calls(text: str, tools: Schemas) -> list[Wanted]:
    """The calls of *tools* in the blocks of code of *text*, or in *text* where it is nothing else.

    They are the calls that a block begins with, beside prints and names given to values. What stands in a call has to be
    written out, or to have been given its name in the block: a call that needs another call's result is left for the turn in
    which that is known, as is all that the block does from its first other statement on. Arguments without a name are taken in
    the order of `parameter_order`.
    """
    if not tools or not any(name in text or _dotted(name) in text for name in tools):
        return []
    blocks = _BLOCK.findall(text) if "```" in text else [text]
    return [call for block in blocks for call in _calls(block, tools)]


def _that_runs_python(tools: Schemas) -> str | None:
    return next(
        (n for n, schema in tools.items() if schema.get("required") == ["code"] and _RUNS_PYTHON.search(n)),
        None,
    )


def _is_broken(code: str, tools: Schemas) -> bool:
    began = re.match(r"\s*(?:print\()?([\w.]+)(?=[ \t(])", code)
    return began is not None and began[1] in tools and len(code) <= _LONGEST


def _only_block(text: str) -> str:
    """The code of a text that is one block of Python and nothing else, or ""."""
    text = text.strip()
    if not text.startswith("```py"):
        return ""
    head, _, rest = text.partition("\n")
    code = rest.removesuffix("```").rstrip()
    return code if head.rstrip() in ("```python", "```py") and "```" not in code else ""


def _only_calls(body: list[ast.stmt], tools: Schemas) -> bool:
    return all(
        isinstance(s, ast.Import | ast.ImportFrom | ast.Pass)
        or (isinstance(s, ast.Expr) and _asks(s.value, tools))
        or (
            isinstance(s, ast.Assign | ast.AnnAssign)
            and s.value is not None
            and (_asks(s.value, tools) or isinstance(s.value, ast.Constant))
        )
        for s in body
    )


def _shows(body: list[ast.stmt]) -> bool:
    """Whether it prints or ends in a value."""
    if isinstance(body[-1], ast.Expr) and not isinstance(body[-1].value, ast.Constant):
        return True
    return any(
        isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"
        for statement in body
        for n in ast.walk(statement)
    )


def parameter_order(schema: Mapping[str, Any]) -> list[str]:
    """The parameters as a Python function would have them: those that are required before those that are not."""
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    return sorted(properties, key=lambda name: name not in required)


def _calls(code: str, tools: Schemas) -> list[Wanted]:
    names: dict[str, Any] = {}  # given to values
    found: list[Wanted] = []
    for statement in _parsed(code):
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Pass():
                continue
            case ast.Expr(value) if _asks(value, tools):
                pass
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                if not _asks(value, tools):
                    try:
                        names[name] = _value(value, names)
                    except _NotKnown:
                        return found
            case _:
                return found
        for node in _innermost_first(value):
            tool = _tool(node.func, tools)
            if tool is not None and (call := _call(node, tool, tools[tool], names)) is not None:
                found.append(call)
    return found


def _parsed(code: str) -> list[ast.stmt]:
    """Its statements; none where it is no Python, or longer or deeper than what a model writes to be run."""
    if len(code) > _LONGEST or _depth(code) > _DEEPEST:
        return []
    try:
        return ast.parse(code.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _asks(value: ast.expr, tools: Schemas) -> bool:
    """Whether an expression calls a tool, or prints something: that shows what was asked for."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print":
        return True
    return any(_tool(node.func, tools) is not None for node in _innermost_first(value))


def _innermost_first(value: ast.expr) -> Iterator[ast.Call]:
    """The calls in it that are made once, with what is known outside of it."""
    if isinstance(value, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda):
        return
    for child in ast.iter_child_nodes(value):
        if isinstance(child, ast.keyword):
            child = child.value
        if isinstance(child, ast.expr):
            yield from _innermost_first(child)
    if isinstance(value, ast.Call):
        yield value


def _tool(function: ast.expr, tools: Schemas) -> str | None:
    name = ast.unparse(function)
    return next((n for n in (name, name.replace(".", "_")) if n in tools), None)


def _call(node: ast.Call, tool: str, schema: Mapping[str, Any], names: Mapping[str, Any]) -> Wanted | None:
    named = {k.arg or "": k.value for k in node.keywords}
    order = parameter_order(schema)
    if named.keys() & set(order[: len(node.args)]):
        # what is given by name cannot stand without one as well: that is another one
        order = [name for name in order if name not in named]
    if len(node.args) > len(order) or any(isinstance(a, ast.Starred) for a in node.args):
        return None
    written = [*zip(order, node.args, strict=False), *named.items()]
    arguments: dict[str, Any] = {}
    for name, expression in written:
        try:
            arguments[name] = _value(expression, names)
        except _NotKnown:
            known = (schema.get("properties") or {}).get(name)
            text = isinstance(known, Mapping) and known.get("type") == "string"
            if not text or any(isinstance(n, ast.Call) for n in ast.walk(expression)):
                return None
            arguments[name] = ast.unparse(expression)  # an expression, for a parameter that takes one
    return Wanted(tool, arguments) if "" not in arguments else None


class _NotKnown(Exception):
    """What an expression comes to is only known once the code is run."""


def _value(expression: ast.expr, names: Mapping[str, Any]) -> Any:
    match expression:
        case ast.Name(name) if name in names:
            return names[name]
        case ast.Constant(str() | int() | float() | bool() | None as value):
            return value
        case ast.List(items) | ast.Tuple(items) | ast.Set(items):
            return [_value(item, names) for item in items]
        case ast.Dict(keys, values) if all(keys):
            pairs = zip(keys, values, strict=True)
            return {str(_value(k, names)): _value(v, names) for k, v in pairs if k is not None}
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case _:
            raise _NotKnown


def _depth(code: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[()\[\]{}]", code):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _dotted(name: str) -> str:
    return name.replace("_", ".")
