"""Where chat templates run: they come from strangers, so they get a sandbox and a budget. Torch-free.

Nothing random, no clock, no files. What a template may use is in ``template_budget``, what its filters may be asked for in
``template_filters``; here the two are put around every part of a template that makes a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from tunesmith.data import template_filters as filters
from tunesmith.data.template_budget import (
    MAX_CHARACTERS,
    charge,
    concatenated,
    counted,
    is_marking,
    sized,
    spending,
    too_much,
    weigh,
    written,
)

MAX_SOURCE = 200_000
"""Characters of a template; the longest known has 30,000."""

_MOST_MESSAGE = 1_000
OPEN, CLOSE = "\U0010fffe", "\U0010ffff"
"""Noncharacters that stand around the output of ``{% generation %}`` until the spans are read off."""


class _Guards(NodeTransformer):
    """Puts a count on every loop, literal, concatenation, slice, key and comparison of a template."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _wrap("_counted", node.iter)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _wrap("_sized", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _wrap("_sized", node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = _wrap("_weighed", pair.key)
        return _wrap("_sized", node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        node.nodes = [_wrap("_written", item) for item in node.nodes]
        return _wrap("_sized", node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _wrap("_sized", node)
        if not isinstance(node.arg, nodes.Const):
            node.arg = _wrap("_weighed", node.arg)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _wrap("_weighed", node.expr)
        for operand in node.ops:
            operand.expr = _wrap("_weighed", operand.expr)
        return node


def _wrap(name: str, node: nodes.Node) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _at_run_time(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A filter of our own; that it takes the context keeps jinja2 from folding it away when it compiles."""

    @pass_context
    def guarded(context: Context, value: Any) -> Any:
        return function(value)

    return guarded


def _weighed(value: Any) -> Any:
    """Let a value through that is about to be compared or hashed, and charge for that."""
    charge(1 + weigh(value) // 200)
    return value


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
        return f"{OPEN}{text}{CLOSE}" if is_marking() else text


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' ``apply_chat_template``, with limits."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})
    concat = staticmethod(concatenated)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=_at_run_time(written)
        )
        self.filters.update({name: filters.guard(function, name) for name, function in self.filters.items()})
        tests: Mapping[str, Any] = self.tests
        self.tests.update({name: filters.guard(function, f"is {name}") for name, function in tests.items()})
        for name in filters.REFUSED:
            self.filters[name] = filters.refuse(name)
        self.filters["format"], self.filters["tojson"] = filters.format_, filters.tojson
        for name, function in (("counted", counted), ("sized", sized), ("weighed", _weighed), ("written", written)):
            self.filters[f"_{name}"] = _at_run_time(function)
        self.globals["lipsum"] = filters.refuse("lipsum")
        self.globals["raise_exception"] = _raise
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def compile_within_limits(self, source: str) -> jinja2.Template:
        """Compile a template; constants are folded on its budget.

        Raises:
            jinja2.TemplateError: it does not compile, or is longer than ``MAX_SOURCE``.
        """
        if len(source) > MAX_SOURCE:
            raise TemplateRuntimeError(f"it has {len(source):,} characters, at most {MAX_SOURCE:,} are read")
        with spending():
            return self.from_string(source)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Guards().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operation whose result fits."""
        filters.operands(operator, left, right)
        return sized(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what is safe to call, and count it."""
        charge()
        given = filters.check_call(__obj, args, kwargs)
        return sized(super().call(__context, __obj, *given, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, with widths within bounds."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            filters.braces(value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return formatted


def render(template: Any, variables: Mapping[str, Any], *, marking: bool) -> str:
    """Run a compiled template within its budget.

    Raises:
        jinja2.TemplateError and whatever else a template's expressions raise.
    """
    with spending(marking=marking):
        pieces: list[str] = []
        total = 0
        for piece in template.generate(**variables):
            total += len(piece)
            if total > MAX_CHARACTERS:
                too_much(f"writes more than {MAX_CHARACTERS:,} characters")
            pieces.append(piece)
        return "".join(pieces)


def _raise(message: Any) -> NoReturn:
    raise TemplateRuntimeError(str(written(message))[:_MOST_MESSAGE])


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

    def __repr__(self) -> str:
        """What it holds is not written out with it: that could be larger than any value."""
        return "<Namespace>"


def _own_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"chat templates cannot store `{name}` on a namespace")
