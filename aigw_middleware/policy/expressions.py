"""Expressions in CEL: checked and compiled once, then asked for each request.

The language is `common-expression-language`'s. Around it stands what ngrok adds to it: names of
headers in any case, `has(map['name'])`, variables that are a text and have fields as well. That is
done by changing the source before it is compiled, and the same look at the source tells which
variables it reads, so that no request pays for others.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import cel

from .functions import (
    FUNCTIONS,
    MACROS,
    METHODS,
    MOST_TEXT,
    NATIVE_FUNCTIONS,
    NATIVE_METHODS,
    OF_REQUEST,
    SIZE,
    bounded,
    size,
)
from .functions import (
    UNSUPPORTED as UNSUPPORTED_FUNCTIONS,
)
from .mistakes import nearest
from .state import State
from .variables import (
    ACTION_RESULTS,
    UNSUPPORTED,
    VARIABLES,
    Absent,
    Path,
    Variable,
    response_cookies,
    response_header,
)

MOST_BYTES = 64 * 1024
MOST_TOKENS = 10_000
MOST_LOOPS = 8
MOST_NESTED = 2
MOST_SECONDS = 0.1
"""How long an expression with loops within each other may take before it calls a function."""
MOST_LOOPED = 128
MOST_INDEXED = 50
"""How often `has(map[name])` may stand in an expression."""

# The library logs what a function of ours raises; we say ourselves what has failed, without values.
logging.getLogger("cel").setLevel(logging.CRITICAL)

TOKEN = re.compile(
    r"""
    (?P<space>(?:[ \t\r\n\f]|//[^\n]*)+)
  | (?P<string>(?:[rR][bB]?|[bB][rR])(?:\"\"\".*?\"\"\"|\'\'\'.*?\'\'\'|"[^"\n]*"|'[^'\n]*')
              |[bB]?(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''
                          |"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
  | (?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]?)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<sign>==|!=|<=|>=|&&|\|\||[-+*/%<>!?:.,()\[\]{}])
    """,
    re.VERBOSE | re.DOTALL,
)
_FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
_WORDS = frozenset({"true", "false", "null", "in"})
_TYPES = frozenset({"int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type"})
_ITSELF = "_itself"
_NOTHING = "_nothing"
_LOWER = "_lower"
_AROUND_IN = ("&&", "||", "?", ":", ",", "==", "!=", "<", "<=", ">", ">=")
_OPENING = {"(": ")", "[": "]", "{": "}"}


class ExpressionError(ValueError):
    """An expression that cannot be used.

    Attributes:
        offset: where in it, in characters from 0.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class EvaluationError(Exception):
    """An expression that failed for a request; says why, and holds no value of it."""


class Scope(NamedTuple):
    """What an expression may read.

    Attributes:
        phase: `request` or `response`.
        vars: the names that `set-vars` may have set before it.
        actions: the actions that may have run before it, by name with underscores.
        secret: returns the secret of a vault and a name.
        variables: the variables, by path.
        functions: further functions.
    """

    phase: str = "request"
    vars: Collection[str] = ()
    actions: Collection[str] = tuple(ACTION_RESULTS)
    secret: Callable[[str, str], str] | None = None
    variables: Mapping[Path, Variable] = VARIABLES
    functions: Mapping[str, Callable[..., Any]] = {}


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class Expression:
    """A compiled expression.

    Args:
        source: the expression.
        scope: what it may read.

    Raises:
        ExpressionError: it does not parse, names what there is not, or would cost too much.
    """

    def __init__(self, source: str, scope: Scope) -> None:
        reading = _Reading(source, scope)
        self.source = source
        self._looks = tuple(reading.looks.items())
        self._functions = reading.functions
        self._is_nested = reading.is_nested
        self._of_request = tuple(reading.of_request)
        try:
            self._program = cel.compile(reading.rewritten)
        except ValueError as error:  # what it says repeats the source, which may hold a secret
            match = re.search(r"<input>:\d+:(\d+)", str(error))
            offset = int(match[1]) - 1 if match else 0
            raise ExpressionError("the expression does not parse", offset) from None

    def __repr__(self) -> str:
        return f"<Expression of {len(self.source)} characters>"

    def evaluate(self, state: State) -> Any:
        """Return its value for a request.

        Raises:
            EvaluationError: it has none.
        """
        context = self._timed() if self._is_nested else dict(self._functions)
        for path, look in self._looks:
            try:
                value = look(state)
            except Absent:
                _place(context, (*path[:-1], _NOTHING), None)  # what it would stand in is there
                continue
            except ValueError as error:
                raise EvaluationError(str(error)) from None
            _place(context, path, value)
        for name in self._of_request:
            context[name] = partial(_REQUEST_FUNCTIONS[name], state)
        try:
            value = self._program.execute(context)
        except _FAILURES as error:
            raise EvaluationError(_reason(error)) from None
        if isinstance(value, str | bytes) and len(value) > MOST_TEXT:
            raise EvaluationError("its value is longer than 64 KB")
        if isinstance(value, list | dict):
            try:
                bounded(value, 1000)
            except ValueError as error:
                raise EvaluationError(str(error)) from None
        return value

    def _timed(self) -> dict[str, Any]:
        """Return the functions, each of which fails when the time is over.

        The inner of two loops calls them again for each item of the outer one, and a client
        chooses the size of what they work on.
        """
        until = time.monotonic() + MOST_SECONDS
        return {
            name: partial(_in_time, function, until) if callable(function) else function
            for name, function in self._functions.items()
        }

    def holds(self, state: State) -> bool:
        """Return whether it is true for a request.

        Raises:
            EvaluationError: it is neither true nor false.
        """
        value = self.evaluate(state)
        if not isinstance(value, bool):
            raise EvaluationError("it is neither true nor false")
        return value


def _in_time(function: Callable[..., Any], until: float, *arguments: Any) -> Any:
    if time.monotonic() > until:
        raise ValueError("an expression takes too long")
    return function(*arguments)


def _reason(error: Exception) -> str:
    """Return why an expression failed, without a value of the request."""
    if isinstance(error, KeyError):
        return "it reads what the request does not have"
    if isinstance(error, IndexError):
        return "it reads behind the end of a list"
    if isinstance(error, ZeroDivisionError):
        return "it divides by zero"
    if isinstance(error, TypeError):
        return "it joins values of different kinds"
    match = re.match(r"Function '([A-Za-z_.]+)' error: Python function call failed: ValueError: ",
                     str(error))  # fmt: skip
    if match is not None:
        return f"{match[1]} cannot be done"
    return "it has no value"


def _place(context: dict[str, Any], path: Path, value: Any) -> None:
    for name in path[:-1]:
        inner = context.get(name)
        if not isinstance(inner, dict):
            inner = context[name] = {}
        context = inner
    if path[-1] == _NOTHING:
        return
    known = context.get(path[-1])
    if isinstance(known, dict) and isinstance(value, dict):
        context[path[-1]] = {**value, **known}
    else:
        context[path[-1]] = value


# --- reading the source


class _Reading:
    """What a look at an expression's source tells, and the source that is compiled."""

    def __init__(self, source: str, scope: Scope) -> None:
        if len(source.encode("utf-8", "surrogatepass")) > MOST_BYTES:
            raise ExpressionError("an expression is 64 KB at most")
        self._scope = scope
        self.looks: dict[Path, Callable[[State], Any]] = {}
        self.functions: dict[str, Callable[..., Any]] = {}
        self.of_request: set[str] = set()
        source = _with_has(source)
        self._tokens = _tokens(source)
        self._locals = self._macros()
        self._edits: dict[int, tuple[int, str]] = {}  # by token: how many it replaces, and by what
        self._before: dict[int, str] = {}
        self._after: dict[int, str] = {}
        self._literal_ins: set[int] = set()
        position = 0
        while position < len(self._tokens):
            position = self._read(position)
        self.rewritten = self._written()

    def _token(self, position: int) -> _Token:
        if 0 <= position < len(self._tokens):
            return self._tokens[position]
        return _Token("end", "", 0)

    def _is(self, position: int, text: str) -> bool:
        token = self._token(position)
        return token.kind == "sign" and token.text == text

    def _macros(self) -> list[tuple[str, int, int]]:
        """Return the names that macros bind, with the tokens between which they do."""
        found: list[tuple[str, int, int]] = []
        for position, token in enumerate(self._tokens):
            is_macro = token.text in MACROS and token.kind == "name"
            if not (is_macro and self._is(position - 1, ".") and self._is(position + 1, "(")):
                continue
            name = self._token(position + 2)
            if name.kind == "name":
                found.append((name.text, position + 2, self._closing(position + 1)))
        if len(found) > MOST_LOOPS:
            raise ExpressionError(f"an expression goes over at most {MOST_LOOPS} lists")
        nested = max(
            (sum(1 for _, begins, ends in found if begins <= b <= ends) for _, b, _ in found),
            default=0,
        )
        self.is_nested = nested > 1
        if nested > MOST_NESTED:
            raise ExpressionError(f"loops stand within each other at most {MOST_NESTED} deep")
        if found and self._longest_list() > MOST_LOOPED:
            raise ExpressionError(f"a list that is gone over has at most {MOST_LOOPED} items")
        return found

    def _closing(self, opening: int) -> int:
        depth = 0
        for position in range(opening, len(self._tokens)):
            token = self._tokens[position]
            if token.kind == "sign":
                depth += token.text in _OPENING
                depth -= token.text in _OPENING.values()
                if depth == 0:
                    return position
        raise ExpressionError("a bracket is not closed", self._tokens[opening].start)

    def _longest_list(self) -> int:
        longest, counts = 0, [0]
        for token in self._tokens:
            if token.kind != "sign":
                continue
            if token.text in _OPENING:
                counts.append(1)
            elif token.text in _OPENING.values():
                longest = max(longest, counts.pop() if len(counts) > 1 else 0)
            elif token.text == ",":
                counts[-1] += 1
        return longest

    def _read(self, position: int) -> int:
        """Look at the token at a position; return the next position to look at."""
        token = self._tokens[position]
        if token.kind == "string":
            self._lower_before_in(position)
            return position + 1
        if token.kind == "name" and token.text == "in":
            self._read_in(position)
        if token.kind != "name" or token.text in _WORDS:
            return position + 1
        if self._is(position - 1, "."):
            self._check_member(position)
            return position + 1
        if any(name == token.text and begins <= position <= ends
               for name, begins, ends in self._locals):  # fmt: skip
            return position + 1
        if self._is(position + 1, "("):
            self._check_function(token.text, token)
            self._replace_size(position)
            return position + 1
        dotted = f"{token.text}.{self._token(position + 2).text}"
        if self._is(position + 1, ".") and self._is(position + 3, "("):
            if dotted == "secrets.get":
                return self._read_secret(position)
            known = dotted in FUNCTIONS or dotted in self._scope.functions
            if known or dotted in UNSUPPORTED_FUNCTIONS:
                self._check_function(dotted, token)
                return position + 3
        if token.text in _TYPES and not self._is(position + 1, "."):
            return position + 1
        return self._read_variable(position)

    def _check_function(self, name: str, token: _Token) -> None:
        if name in self._scope.functions:
            self.functions[name] = self._scope.functions[name]
        elif name in OF_REQUEST and self._scope.variables:
            if "Res" in name and self._scope.phase == "request":
                raise ExpressionError(f"{name}() is for on_http_response", token.start)
            self.of_request.add(name)
        elif name in FUNCTIONS:
            self.functions[name] = FUNCTIONS[name]
        elif name not in NATIVE_FUNCTIONS:
            raise self._no_function(name, token, {*FUNCTIONS, *NATIVE_FUNCTIONS, *OF_REQUEST})

    def _check_member(self, position: int) -> None:
        """Check what stands behind a dot and is called; what is not called is a field."""
        token = self._tokens[position]
        name = token.text
        if not self._is(position + 1, "(") or name in MACROS:
            return
        if name in self._scope.functions:
            self.functions[name] = self._scope.functions[name]
        elif name in METHODS:
            self.functions[name] = METHODS[name]
        elif name not in NATIVE_METHODS:
            raise self._no_function(name, token, {*METHODS, *NATIVE_METHODS, *MACROS})
        self._replace_size(position)

    def _replace_size(self, position: int) -> None:
        """Have ours called for `size`: that of the library counts a text's bytes."""
        if self._tokens[position].text == "size":
            self._edits[position] = (1, SIZE)
            self.functions[SIZE] = size

    @staticmethod
    def _no_function(name: str, token: _Token, known: set[str]) -> ExpressionError:
        if name in UNSUPPORTED_FUNCTIONS:
            return ExpressionError(
                f'the function "{name}" is known to ngrok, not supported here', token.start
            )
        return ExpressionError(f'there is no function "{name}"{nearest(name, known)}', token.start)

    def _read_secret(self, position: int) -> int:
        """Replace `secrets.get('vault', 'name')` by what is looked up once."""
        start = self._tokens[position].start
        closing = self._closing(position + 3)
        inner = self._tokens[position + 4 : closing]
        texts = [_literal(token) for token in inner if token.kind == "string"]
        shape = [token.text if token.kind == "sign" else token.kind for token in inner]
        if shape == ["string"]:
            texts = ["default", *texts]
        elif shape != ["string", ",", "string"]:
            raise ExpressionError("secrets.get takes a vault and a name, both as texts", start)
        vault, name = texts
        if self._scope.secret is None:
            raise ExpressionError("secrets cannot be read here", start)
        value = self._scope.secret(vault, name)
        variable = f"_secret{len(self.looks)}"
        self.looks[(variable,)] = lambda state: value
        self._edits[position] = (closing + 1 - position, variable)
        return closing + 1

    def _read_variable(self, position: int) -> int:
        """Check a variable and what of it is read; return the position behind it."""
        first = self._tokens[position]
        path: list[str] = [first.text]
        ends = [position]  # the token that each name of the path ends with
        starts = [position]
        while True:
            after = ends[-1] + 1
            following = self._token(after + 1)
            if self._is(after, ".") and following.kind == "name":
                if self._is(after + 2, "("):
                    break
                path.append(following.text)
                starts.append(after + 1)
                ends.append(after + 1)
            elif (self._is(after, "[") and following.kind == "string"
                    and self._is(after + 2, "]")):  # fmt: skip
                path.append(_literal(following))
                starts.append(after + 1)
                ends.append(after + 2)
            else:
                break
        found = self._longest(tuple(path))
        if found is None:
            raise self._no_variable(tuple(path), first)
        variable_path, variable = found
        self._check_phase(variable_path, first)
        rest = path[len(variable_path) :]
        last = len(variable_path) - 1
        if variable.one is not None and rest:
            # A header's name: in any case, and only that header is looked up.
            name = rest[0].lower()
            self._look_at_one(variable_path, variable, name)
            token = starts[len(variable_path)]
            is_literal = self._tokens[token].kind == "string"
            self._edits[token] = (1, json.dumps(name) if is_literal else name)
            return ends[-1] + 1
        if variable.one is not None and not variable.is_open and self._is(ends[-1] + 1, "["):
            # A name that is computed: in any case too.
            self._lower(ends[-1] + 2, self._closing(ends[-1] + 1))
        if variable.is_open:
            self._check_open(variable_path, rest, first)
            if rest:
                name = rest[0]
                self._look_at_one(variable_path, variable._replace(one=_member_of(variable)), name)
                return ends[-1] + 1
        elif rest and not variable.is_map:
            raise self._no_variable(tuple(path), first)
        elif self._has_fields(variable_path):
            # It is a text and has fields: alone it is the text.
            self._edits[ends[last]] = (1, f"{self._tokens[ends[last]].text}.{_ITSELF}")
            self.looks[(*variable_path, _ITSELF)] = _cached(variable_path, variable)
            return ends[-1] + 1
        self.looks[variable_path] = _cached(variable_path, variable)
        return ends[-1] + 1

    def _longest(self, path: Path) -> tuple[Path, Variable] | None:
        """Return the variable with the longest path that `path` begins with."""
        for length in range(len(path), 0, -1):
            variable = self._scope.variables.get(path[:length])
            if variable is not None:
                return path[:length], variable
        return None

    @staticmethod
    def _has_fields(path: Path) -> bool:
        return any(known[: len(path)] == path and len(known) > len(path) for known in VARIABLES)

    def _check_phase(self, path: Path, token: _Token) -> None:
        if path[0] == "res" and self._scope.phase == "request":
            raise ExpressionError(f'"{".".join(path)}" is for on_http_response', token.start)

    def _check_open(self, path: Path, rest: list[str], token: _Token) -> None:
        if path == ("vars",) and rest and rest[0] not in self._scope.vars:
            hint = nearest(rest[0], self._scope.vars)
            raise ExpressionError(f'no set-vars before it sets "vars.{rest[0]}"{hint}', token.start)
        if path == ("actions", "ngrok") and rest:
            action = rest[0]
            if action not in ACTION_RESULTS:
                hint = nearest(action, ACTION_RESULTS)
                raise ExpressionError(f'there is no action "{action}"{hint}', token.start)
            if len(rest) > 1 and rest[1] not in ACTION_RESULTS[action]:
                hint = nearest(rest[1], ACTION_RESULTS[action])
                raise ExpressionError(f'"{action}" leaves no "{rest[1]}" behind{hint}', token.start)

    def _look_at_one(self, path: Path, variable: Variable, name: str) -> None:
        one = variable.one or _nothing_there
        self.looks[(*path, name)] = lambda state: one(state, name)
        if path not in self.looks:
            # The map is there, also when the request has no such header.
            self.looks = {path: _nothing, **self.looks}

    def _lower(self, first: int, end: int) -> None:
        """Have the value of some tokens, up to `end`, put in lower case."""
        self._before[first] = f"{_LOWER}("
        self._after[end - 1] = ")"
        self.functions[_LOWER] = _lowered

    def _headers_at(self, position: int) -> tuple[Path, Variable] | None:
        """Return the map of headers whose name stands at a position, alone."""
        path = (self._token(position).text, self._token(position + 2).text)
        variable = self._scope.variables.get(path)
        if not self._is(position + 1, ".") or variable is None or variable.one is None:
            return None
        if self._is(position + 3, ".") or self._is(position + 3, "["):
            return None
        return None if variable.is_open else (path, variable)

    def _read_in(self, position: int) -> None:
        """`name in req.headers`, where the name is computed: in any case too."""
        if self._headers_at(position + 1) is None or position in self._literal_ins:
            return
        first, depth = position - 1, 0
        while first >= 0:
            token = self._tokens[first]
            if token.kind == "sign":
                depth += (token.text in _OPENING.values()) - (token.text in _OPENING)
                if depth < 0 or (depth == 0 and token.text in _AROUND_IN):
                    break
            elif token.text == "in" and depth == 0:
                break
            first -= 1
        self._lower(first + 1, position)

    def _lower_before_in(self, position: int) -> None:
        """`'Name' in req.headers`: in any case, and only that header is looked up."""
        if self._token(position + 1).text != "in":
            return
        before = self._token(position - 1)
        if before.kind == "sign" and before.text not in (*_OPENING, *_AROUND_IN):
            return  # a part of a name that is computed
        found = self._headers_at(position + 2)
        if found is None:
            return
        path, variable = found
        self._literal_ins.add(position + 1)
        self._check_phase(path, self._tokens[position])
        name = _literal(self._tokens[position]).lower()
        self._look_at_one(path, variable, name)
        self._edits[position] = (1, json.dumps(name))
        # What follows is the map itself, which is not looked up whole for this.
        self._edits[position + 2] = (3, ".".join(path))
        self._tokens[position + 2 : position + 5] = [
            _Token("done", token.text, token.start)
            for token in self._tokens[position + 2 : position + 5]
        ]

    def _no_variable(self, path: Path, token: _Token) -> ExpressionError:
        shown = ".".join(path)
        if any(path[: len(known)] == known for known in UNSUPPORTED):
            return ExpressionError(f'"{shown}" is known to ngrok, not supported here', token.start)
        if not self._scope.variables:
            message = f'"{shown}" is known only when a request comes; this is read before'
            return ExpressionError(message, token.start)
        known = {".".join(name) for name in self._scope.variables}
        return ExpressionError(
            f'there is no variable "{shown}"{nearest(shown, known)}', token.start
        )

    def _written(self) -> str:
        """Return the source with all changes."""
        parts, position = [], 0
        while position < len(self._tokens):
            count, text = self._edits.get(position, (1, self._tokens[position].text))
            parts.append(self._before.get(position, ""))
            parts.append(text)
            parts += [self._after.get(position + step, "") for step in range(count)]
            position += count
        # Two words need a space between them, everything else may have one.
        return " ".join(parts)


def _member_of(variable: Variable) -> Callable[[State, str], Any]:
    def one(state: State, name: str) -> Any:
        try:
            return variable.look(state)[name]
        except KeyError:
            raise Absent from None

    return one


def _nothing_there(state: State, name: str) -> Any:
    raise Absent


def _lowered(name: object) -> object:
    return name.lower() if isinstance(name, str) else name


def _nothing(state: State) -> dict[str, Any]:
    return {}


def _cached(path: Path, variable: Variable) -> Callable[[State], Any]:
    # Of a header a layer may meanwhile have taken the credential out.
    if variable.is_open or variable.one is not None or path[0] == "time" or "url" in path:
        return variable.look

    def look(state: State) -> Any:
        try:
            return state.values[path]
        except KeyError:
            value = state.values[path] = variable.look(state)
            return value

    return look


def _tokens(source: str) -> list[_Token]:
    found: list[_Token] = []
    position = 0
    while position < len(source):
        match = TOKEN.match(source, position)
        if match is None:
            raise ExpressionError("the expression does not parse", position)
        if match.lastgroup != "space":
            found.append(_Token(match.lastgroup or "", match[0], position))
        position = match.end()
    if len(found) > MOST_TOKENS:
        raise ExpressionError("the expression is too long")
    if not found:
        raise ExpressionError("the expression is empty")
    return found


def _with_has(source: str) -> str:
    """Return the source without `has(map['name'])`, which CEL has not: `('name' in map)`."""
    for _ in range(MOST_INDEXED):
        changed = _with_one_has(source)
        if changed is None:
            return source
        source = changed
    raise ExpressionError(f"has(map[name]) stands in an expression at most {MOST_INDEXED} times")


def _with_one_has(source: str) -> str | None:
    """Return the source with the first of them written otherwise; None where there is none."""
    tokens = _tokens(source)
    for position, token in enumerate(tokens):
        if token.kind != "name" or token.text != "has":
            continue
        if [one.text for one in tokens[position + 1 : position + 2]] != ["("]:
            continue
        closing = _match(tokens, position + 1, 1)
        if closing is None or tokens[closing - 1].text != "]":
            continue
        opening = _match(tokens, closing - 1, -1)
        if opening is None or opening <= position + 2:
            continue
        base = source[tokens[position + 2].start : tokens[opening].start].strip()
        index = source[tokens[opening + 1].start : tokens[closing - 1].start].strip()
        if tokens[opening + 1].kind == "number" and opening + 2 == closing - 1:
            there = f"has({base}) && " if base.endswith("]") or "." in base else ""
            written = f"({there}size({base}) > {index})"
        else:
            written = f"({index} in {base})"
        return source[: token.start] + written + source[tokens[closing].start + 1 :]
    return None


def _match(tokens: list[_Token], position: int, step: int) -> int | None:
    """Return the position of the bracket that belongs to the one at `position`."""
    depth = 0
    while 0 <= position < len(tokens):
        token = tokens[position]
        if token.kind == "sign":
            depth += (token.text in _OPENING) - (token.text in _OPENING.values())
            if depth == 0:
                return position
        position += step
    return None


def _literal(token: _Token) -> str:
    """Return the text that a string's token stands for."""
    try:
        value = cel.evaluate(token.text)
    except _FAILURES:
        raise ExpressionError("the expression does not parse", token.start) from None
    if not isinstance(value, str):
        raise ExpressionError("a text was expected", token.start)
    return value


_PARAMETERS = _cached(("req", "url", "query_params"), VARIABLES["req", "url", "query_params"])
_COOKIES = _cached(("req", "cookies"), VARIABLES["req", "cookies"])


def _query_values(state: State, name: str) -> list[str]:
    found: dict[str, list[str]] = _PARAMETERS(state)
    return found.get(name, [])


def _cookie_values(state: State, name: str) -> list[Any]:
    found: dict[str, list[Any]] = _COOKIES(state)
    return found.get(name, [])


_REQUEST_FUNCTIONS: dict[str, Callable[[State, str], Any]] = {
    "hasReqHeader": lambda state, name: bool(state.header(name)),
    "getReqHeader": lambda state, name: state.header(name),
    "hasReqCookie": lambda state, name: bool(_cookie_values(state, name)),
    "getReqCookie": _cookie_values,
    "hasQueryParam": lambda state, name: bool(_query_values(state, name)),
    "getQueryParam": _query_values,
    "hasResHeader": lambda state, name: bool(response_header(state, name)),
    "getResHeader": response_header,
    "hasResCookie": lambda state, name: bool(response_cookies(state).get(name)),
    "getResCookie": lambda state, name: response_cookies(state).get(name, []),
}
