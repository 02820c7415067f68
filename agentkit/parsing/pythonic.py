"""Calls that a model writes as Python: a block of code that does nothing but call tools. It is read, and never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agentkit.parsing.calls import Schemas, Wanted

__all__ = ["parameter_order", "python_calls"]

_BLOCK = re.compile(r"```(?:python|py|tool_code|tool_call)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_LONGEST = 20_000  # characters of a block; a longer one is a program
_DEEPEST = 50  # brackets within brackets


def python_calls(text: str, tools: Schemas) -> list[Wanted]:
    """The calls of *tools* in the blocks of code of *text*, or in *text* where it is nothing else.

    A block counts if all it does is to call tools, to print, and to give names to values. What stands in a call has to be
    written out, or to have been given its name in the block: a call that needs another call's result is left for the turn in
    which that is known. Arguments without a name are taken in the order of `parameter_order`.
    """
    if not tools or not any(name in text or _dotted(name) in text for name in tools):
        return []
    blocks = _BLOCK.findall(text) if "```" in text else [text]
    return [call for block in blocks for call in _calls(block, tools)]


def parameter_order(schema: Mapping[str, Any]) -> list[str]:
    """The parameters as a Python function would have them: those that are required before those that are not."""
    properties, required = schema.get("properties") or {}, schema.get("required") or ()
    return sorted(properties, key=lambda name: name not in required)


def _calls(code: str, tools: Schemas) -> list[Wanted]:
    if len(code) > _LONGEST or _depth(code) > _DEEPEST:
        return []
    try:
        body = ast.parse(code.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names: dict[str, Any] = {}  # given to values
    found: list[Wanted] = []
    for statement in body:
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
                        return []
            case _:
                return []
        for node in _innermost_first(value):
            tool = _tool(node.func, tools)
            if tool is not None and (call := _call(node, tool, tools[tool], names)) is not None:
                found.append(call)
    return found


def _asks(value: ast.expr, tools: Schemas) -> bool:
    """Whether an expression calls a tool, by itself or to be printed; a print of anything else shows what was asked for."""
    if not isinstance(value, ast.Call):
        return False
    return _tool(value.func, tools) is not None or ast.unparse(value.func) == "print"


def _innermost_first(value: ast.expr) -> Iterator[ast.Call]:
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
    order = parameter_order(schema)
    if len(node.args) > len(order) or any(isinstance(a, ast.Starred) for a in node.args):
        return None
    written = [*zip(order, node.args, strict=False), *((k.arg or "", k.value) for k in node.keywords)]
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
