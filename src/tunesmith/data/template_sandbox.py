"""Where chat templates run: they come from strangers, so they get a sandbox and a budget. Torch-free.

Limits of one rendering: ``MAX_CHARACTERS`` of output and of any string a template builds (items, for a list),
``MAX_PARTS`` parts of a value that is written out, ``MAX_WORK`` units of work, where a unit is one turn of a loop, one call or filter, or 1,000 characters handled.
Both are counts, not seconds: whether a template passes does not depend on the machine. Nothing random, no clock, no files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 8_000_000
MAX_WORK = 1_000_000
MAX_PARTS = 1_000_000
_CHARACTERS_PER_UNIT = 1_000
_MAX_INTEGER_BITS = 4_096
_MAX_WIDTH = 100_000
OPEN, CLOSE = "\U0010fffe", "\U0010ffff"
"""Noncharacters that stand around the output of ``{% generation %}`` until the spans are read off."""

_REFUSED = ("random", "urlize", "pprint")
_EXPANDING = ("join", "string", "replace", "sum", "xmlattr", "urlencode")
_WIDE = ("center", "indent", "batch", "slice")
_WIDE_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


@dataclass
class Budget:
    """What one rendering has used."""

    work: int = 0
    marking: bool = False


_budget: ContextVar[Budget | None] = ContextVar("template_budget", default=None)


def _too_much(what: str) -> NoReturn:
    raise TemplateRuntimeError(f"the template {what}: a chat template has no need of that, it was stopped")


def charge(units: int = 1) -> None:
    """Count work; free outside a rendering (constants are folded when a template is compiled)."""
    budget = _budget.get()
    if budget is None:
        return
    budget.work += units
    if budget.work > MAX_WORK:
        _too_much(f"needs more than {MAX_WORK:,} steps")


def _sized(value: Any) -> Any:
    """Let a value through that is small enough, and charge for its size."""
    if isinstance(value, str | list | tuple | dict):
        size = len(value)
        if size > MAX_CHARACTERS:
            _too_much(f"builds a value longer than {MAX_CHARACTERS:,}")
        charge(1 + size // _CHARACTERS_PER_UNIT)
    elif isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        _too_much("computes with enormous numbers")
    else:
        charge()
    return value


def _measured(value: Any) -> Any:
    """Let a value through whose written form stays small, however often its parts are shared."""
    if not isinstance(value, list | tuple | dict):
        return _sized(value)
    total = parts = 0
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        parts += 1
        if isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        total += len(item) if isinstance(item, str) else 1
        if total > MAX_CHARACTERS or parts > MAX_PARTS or len(stack) > MAX_PARTS:
            _too_much("writes out a value that is too large")
    charge(1 + total // _CHARACTERS_PER_UNIT)
    return value


def _counted(iterable: Any) -> Any:
    """Charge a loop for its turns: at once where the length is known, turn by turn otherwise."""
    if isinstance(iterable, str | list | tuple | dict | range):
        charge(len(iterable))
        return iterable
    if isinstance(iterable, Undefined) or not isinstance(iterable, Iterable):
        return iterable
    return _each(iterable)


def _each(iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        charge()
        yield item


def _operands(operator: str, left: Any, right: Any) -> None:
    """Refuse before computing what would be too large to compute."""
    if operator == "*":
        for many, text in ((left, right), (right, left)):
            if isinstance(many, int) and isinstance(text, str | list | tuple) and many * len(text) > MAX_CHARACTERS:
                _too_much(f"builds a value longer than {MAX_CHARACTERS:,}")
    elif operator == "**" and isinstance(right, int) and right > _MAX_INTEGER_BITS:
        _too_much("computes with enormous numbers")
    elif operator == "%" and isinstance(left, str):
        _format_of(left)
        _measured(right)


def _format_of(pattern: str) -> None:
    if re.search(r"\d{5,}|%[^a-zA-Z]*\*|:[^}]*\{", pattern):
        _too_much("asks for a width without bound")


class _Guards(NodeTransformer):
    """Puts a count on every loop, filter, concatenation, slice and comparison of a template."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _wrap("_counted", node.iter)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Filter:
        self.generic_visit(node)
        if node.node is not None:
            node.node = _wrap("_sized", node.node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        node.nodes = [_wrap("_measured", item) for item in node.nodes]
        return _wrap("_sized", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _wrap("_sized", node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _wrap("_sized", node.expr)
        for operand in node.ops:
            if operand.op in ("in", "notin"):
                operand.expr = _wrap("_sized", operand.expr)
        return node


def _wrap(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Generation(Extension):
    """``{% generation %} … {% endgeneration %}``: marks what the model is to produce."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that jinja2 asks for

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn the block into a call, so that it sees its whole output."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        text = str(caller())
        budget = _budget.get()
        return f"{OPEN}{text}{CLOSE}" if budget is not None and budget.marking else text


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' ``apply_chat_template``, with limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=_measured
        )
        for name in _REFUSED:
            self.filters[name] = _refuse(name)
        self.globals["lipsum"] = _refuse("lipsum")
        for name in _EXPANDING:
            self.filters[name] = _guard(self.filters[name], name)
        for name in _WIDE:
            self.filters[name] = _guard(self.filters[name], name)
        self.filters["format"] = _format
        self.filters["tojson"] = _tojson
        self.filters.update(_counted=_counted, _sized=_sized, _measured=_measured)
        self.globals["raise_exception"] = _raise
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Guards().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operation whose result fits."""
        _operands(operator, left, right)
        return _sized(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what is safe to call, and count it."""
        charge()
        if isinstance(__obj, LoopContext):
            args = tuple(_counted(item) for item in args)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            _method(owner, name, args)
        return _sized(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, with widths within bounds."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            _format_of(value.__self__)
            _measured([*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return formatted


def render(template: Any, variables: Mapping[str, Any], *, marking: bool) -> str:
    """Run a compiled template within its budget.

    Raises:
        jinja2.TemplateError and whatever else a template's expressions raise.
    """
    token = _budget.set(Budget(marking=marking))
    try:
        pieces: list[str] = []
        total = 0
        for piece in template.generate(**variables):
            total += len(piece)
            if total > MAX_CHARACTERS:
                _too_much(f"writes more than {MAX_CHARACTERS:,} characters")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _budget.reset(token)


def _method(owner: str, name: str, args: tuple[Any, ...]) -> None:
    charge(len(owner) // _CHARACTERS_PER_UNIT)
    if name in _WIDE_METHODS:
        _widths(args)
    elif name == "join" and args:
        _joined(owner, args[0])
    elif name == "replace" and len(args) > 1:
        _replaced(owner, *args[:2])
    elif name == "translate":
        _too_much("translates text")


def _widths(args: Iterable[Any]) -> None:
    if any(isinstance(item, int) and item > _MAX_WIDTH for item in args):
        _too_much("asks for a width without bound")


def _joined(separator: Any, items: Any) -> None:
    if isinstance(items, list | tuple | dict):
        _measured(items)
        if len(str(separator)) * len(items) > MAX_CHARACTERS:
            _too_much(f"builds a value longer than {MAX_CHARACTERS:,}")


def _replaced(text: Any, old: Any, new: Any) -> None:
    if len(text) + str(text).count(str(old)) * len(str(new)) > MAX_CHARACTERS:
        _too_much(f"builds a value longer than {MAX_CHARACTERS:,}")


def _refuse(name: str) -> Callable[..., Any]:
    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        raise SecurityError(f"chat templates may not use `{name}`")

    return refused


def _guard(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The filter ``name`` behind a check of its arguments; jinja2's context markers are kept."""
    passes = hasattr(original, "jinja_pass_arg")

    def guarded(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        first = 1 if passes else 0
        values = given[first:]
        if name == "join" and values and not isinstance(values[0], str | Undefined):
            given[first] = values[0] = list(_each(values[0]))
            _joined(values[1] if len(values) > 1 else kwargs.get("d", ""), values[0])
        elif name == "replace" and len(values) > 2:
            _replaced(str(values[0]), values[1], values[2])
        elif name in _WIDE:
            _widths([*values[1:], *kwargs.values()])
            _repeats(name, values, kwargs)
        elif values:
            _measured(values[0])
        return _sized(original(*given, **kwargs))

    if passes:
        guarded.jinja_pass_arg = original.jinja_pass_arg  # type: ignore[attr-defined]
    return guarded


def _repeats(name: str, values: list[Any], kwargs: Mapping[str, Any]) -> None:
    """An indentation is written once a line."""
    if name == "indent":
        width = values[1] if len(values) > 1 else kwargs.get("width", 4)
        step = width if isinstance(width, int) else len(width)
        if step * str(values[0]).count("\n") > MAX_CHARACTERS:
            _too_much(f"builds a value longer than {MAX_CHARACTERS:,}")


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    pattern = str(value)
    _format_of(pattern)
    _measured([*args, *kwargs.values()])
    return pattern % (kwargs or args)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers writes JSON: no HTML escapes, letters as they are."""
    _measured(value)
    _widths([indent])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateRuntimeError(message)


class _Dict:
    """``dict`` without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Make a dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Make a dict of equal values."""
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace that takes no names of the interpreter's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _own_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _own_name(name)
        Namespace.__setitem__(self, name, value)


def _own_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"chat templates cannot store `{name}` on a namespace")
