"""Arithmetic, exactly, without running code."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

from agentkit import ToolError, tool

_BINARY: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Final[dict[type[ast.unaryop], Callable[[Any], Any]]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "factorial": math.factorial,
    "floor": math.floor,
    "gcd": math.gcd,
    "lcm": math.lcm,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "max": max,
    "min": min,
    "round": round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
_CONSTANTS: Final = {"pi": math.pi, "e": math.e, "tau": math.tau}
_BIGGEST: Final = 20_000  # bits of a result: more is a mistake, and could take the machine's memory


@tool(effects=())
def calculator(expression: str) -> str:
    """Work out an arithmetic expression, such as "(12.5 + 7) * 3 ** 2" or "sqrt(2) / 3".

    Args:
        expression: Numbers, + - * / // % **, parentheses, pi, e, and functions such as sqrt, log, sin, round, factorial.
    """
    source = expression.strip().replace("^", "**").replace("×", "*").replace("÷", "/").replace(",", ", ")
    try:
        value = _value(ast.parse(source, mode="eval").body)
    except SyntaxError:
        raise ToolError(f"{expression!r} is not an arithmetic expression") from None
    except (ArithmeticError, ValueError, TypeError) as exc:
        raise ToolError(f"{expression!r}: {exc}") from None
    return str(int(value)) if isinstance(value, Fraction) and value.denominator == 1 else str(_plain(value))


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Fraction) else value


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            return (
                Fraction(str(number)) if isinstance(number, float) else Fraction(number)
            )  # 0.1 + 0.2 is 0.3
        case ast.Name(id) if id in _CONSTANTS:
            return _CONSTANTS[id]
        case ast.UnaryOp(op, operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and _bits(a) * abs(b) > _BIGGEST:
                raise ToolError("the result would be too large")
            return _BINARY[type(op)](a, b)
        case ast.Call(ast.Name(id), args, []) if id in _FUNCTIONS:
            values = [_value(a) for a in args]
            whole = [int(v) if isinstance(v, Fraction) and v.denominator == 1 else _plain(v) for v in values]
            if id == "factorial" and isinstance(whole[0], int) and whole[0] > 2000:
                raise ToolError("the result would be too large")
            result = _FUNCTIONS[id](*whole)
            return Fraction(result) if isinstance(result, int) else result
    raise ToolError(
        "only numbers, arithmetic operators, parentheses and functions such as sqrt can be used; nothing has a name here, "
        "and no file can be read: put the numbers in, or use a tool that runs code"
    )


def _bits(value: Any) -> int:
    return (
        (value.numerator.bit_length() + value.denominator.bit_length()) if isinstance(value, Fraction) else 64
    )
