"""Jinja chat templates, which come with models from anywhere: jinja2's immutable sandbox, set up as the transformers library does, with a
budget of work. Nothing that a template can write takes more than about a second or 64 MB beside its messages."""
import functools
import json
import re
import threading
from functools import lru_cache
from types import BuiltinMethodType, GeneratorType, MethodType

from ..errors import FormatError
from .chat import MARKS

LONGEST = 1 << 16  # characters of a template
WORK = 500_000  # units of a rendering: an item of a list, a pass through a loop, 16 characters of a text that is made or read
EACH = 64  # more units for each one that the messages make up
BITS = 1 << 14  # of a whole number
ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, SyntaxError, MemoryError)
METHODS = {"capitalize", "casefold", "copy", "count", "endswith", "find", "format", "get", "index", "isalnum", "isalpha", "isdecimal",
           "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "items", "join", "keys", "lower", "lstrip", "partition",
           "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines",
           "startswith", "strip", "swapcase", "title", "upper", "values"}  # of texts, lists and dicts
FILTERS = {"abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape", "format",
           "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
           "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "striptags", "sum", "title", "tojson", "trim",
           "truncate", "unique", "upper", "wordcount"}
LIGHT = {"count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr", "reverse", "select",
         "selectattr"}  # those that do not look into the items

_budget = threading.local()


class TooMuch(ValueError):
    """The budget is spent."""


def render(template, variables):
    """template: Jinja text; variables: dict of plain values -> text. FormatError: the template is broken, refuses, or attacks."""
    environment = _environment()
    try:
        _budget.left = float("inf")
        _budget.left = WORK + EACH * text_size(variables)
        return _compiled(template).render(variables)
    except (environment.error, *ERRORS) as error:
        raise FormatError(f"chat template: {_words(error)}") from None


def _words(error):
    text = (getattr(error, "message", None) or str(error))[:300] or type(error).__name__
    return f"line {error.lineno}: {text}" if isinstance(getattr(error, "lineno", None), int) else text


@lru_cache(8)
def _compiled(template):
    if len(template) > LONGEST:
        raise FormatError(f"chat template: {len(template)} characters; one of more than {LONGEST} is not read")
    import jinja2

    environment = _environment()
    code = environment.compile(environment.rewriter().visit(environment.parse(template)), "chat template", "chat template")
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


# ---- the budget ---------------------------------------------------------------------------------------------------------------


def spend(units):
    _budget.left -= units
    if _budget.left < 0:
        raise TooMuch("it does too much: a loop or a text has no end that is near")


def nodes(value):
    """-> how many values hang together in a value, texts of any length counted once."""
    if not isinstance(value, (list, tuple, dict)):
        return len(value) if isinstance(value, range) else 1
    return _walk(value, lambda text: 1)


def text_size(value):
    """-> units of a value written as text; spends nothing, but stops where that would be more than there are."""
    if isinstance(value, str):
        return (len(value) >> 4) + 1
    return _walk(value, lambda text: (len(text) >> 4) + 1)


def _walk(value, weight):
    waiting, total = [value], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, type({}.items()))):
            waiting += [part for pair in (value.items() if isinstance(value, dict) else value) for part in pair]
        elif isinstance(value, (list, tuple, type({}.keys()), type({}.values()))):
            waiting += value
        total += weight(value) if isinstance(value, str) else 1
        if total > _budget.left:
            spend(total)
    return total


def weigh(value):
    """-> the value, that is new, paid for."""
    spend(text_size(value) if isinstance(value, str) else nodes(value))
    return value


def shown(value):
    """-> the value, all texts in it paid for: it is about to be written or compared."""
    spend(text_size(value))
    return value


def sliced(value):
    """-> the value, a part of another, paid for."""
    spend(len(value) >> 4 if isinstance(value, str) else len(value) if isinstance(value, (list, tuple)) else 1)
    return value


def each(values, cost):
    """Yields the values, each paid for."""
    for value in values:
        spend(cost)
        yield value


def paste(*values):
    """The operator ~."""
    return "".join(str(shown(value)) for value in values)


# ---- what could make much out of little ----------------------------------------------------------------------------------------


def _filled(pattern, values):
    """Pays for the text that `pattern` makes of the values; ValueError for widths beyond 999."""
    if re.search(r"%[^a-zA-Z%]*(\d{4}|\*)|\{[^{}]*(\d{4}|:[^{}]*\{)", pattern):
        raise TooMuch(f"the format {pattern[:40]!r} asks for too wide a text")
    spend(text_size(pattern) + (pattern.count("%") + pattern.count("{")) * (text_size(values) + 64))


def _replaced(text, old, new):
    text, old, new = str(text), str(old), str(new)
    spend(text_size(text) + (text.count(old) * len(new) >> 4))


def _joined(values, separator):
    if isinstance(values, (list, tuple, str, dict, range)):
        spend(text_size(values) + (len(values) * len(str(separator)) >> 4))


def _held(values):
    """-> the values, those that come one by one as lists."""
    return tuple(list(value) if isinstance(value, GeneratorType) else value for value in values)


def _product(left, right):
    for one, other in ((left, right), (right, left)):
        if isinstance(one, int) and isinstance(other, (str, list, tuple)):
            spend(max(one, 0) * (len(other) / 16 if isinstance(other, str) else nodes(other)))
    if isinstance(left, int) and isinstance(right, int):
        _small(left.bit_length() + right.bit_length())


def _power(left, right):
    if isinstance(left, int) and isinstance(right, int):
        _small(left.bit_length() * max(right, 0))


def _small(bits):
    if bits > BITS:
        raise TooMuch(f"a whole number of {bits} bits; at most {BITS} are computed with")


def _remainder(left, right):
    if isinstance(left, str):
        _filled(left, right)


OPERATORS = {"*": _product, "**": _power, "%": _remainder, "+": lambda left, right: None}


def _method(owner, name, args):
    """Before owner.name(*args) of a plain value."""
    if name not in METHODS:
        raise TypeError(f"a chat template may not call the method {name} of a {type(owner).__name__}")
    if name == "replace" and len(args) > 1:
        _replaced(owner, *args[:2])
    elif name == "join" and args:
        _joined(args[0], owner)
    elif isinstance(owner, str):
        searched = len(args[0]) if name[0] == "r" and args and isinstance(args[0], str) else 1  # from the right: not in linear time
        spend(text_size(owner) + (len(owner) * searched >> 8))


def _filter(name, function):
    """-> the filter or test, with what it reads and what it makes paid for."""
    @functools.wraps(function)
    def run(*args, **options):
        values = args[1:] if getattr(function, "jinja_pass_arg", None) else args
        spend(1)
        if name not in LIGHT:
            args = (*args[: len(args) - len(values)], *(values := _held(values)))
            shown(values)
        elif values and isinstance(values[0], (list, tuple, dict, range)):
            spend(len(values[0]) if name not in ("count", "length", "first", "last", "d", "default") else 1)
        rest = [*values[1:], *options.values()]
        numbers = [value for value in rest if isinstance(value, (int, float)) and abs(value) > 999]
        if numbers and name in ("indent", "round", "tojson", "truncate"):
            raise TooMuch(f"the filter {name} with {numbers[0]}; expected at most 999")
        if name in ("indent", "tojson"):  # each line, or each value, may get all of it
            spend(sum(text_size(value) + 64 * isinstance(value, int) for value in rest) * text_size(values[0]))
        if name == "format" and isinstance(values[0], str):
            _filled(values[0], rest)
        if name == "replace" and len(rest) > 1:
            _replaced(values[0], *rest[:2])
        if name == "join" and rest:
            _joined(values[0], rest[0])
        if name == "sum" and any(not isinstance(value, (int, float, str)) for value in rest):
            raise TypeError("the filter sum adds numbers alone")
        return weigh(function(*args, **options))

    return run


# ---- the environment ------------------------------------------------------------------------------------------------------------


@lru_cache(1)
def _environment():
    try:
        import jinja2
    except ImportError:
        raise ImportError("chat template: needs jinja2. Hint: pip install \"pyllm[chat]\", or tokenizer.chat_template = the name of a "
                          "built-in one, such as \"chatml\"") from None
    from jinja2 import nodes as tree
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %} around what the assistant says: its content, between two variables if they are set."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            begins, ends = (tree.Output([tree.Name(f"generation_{name}", "load")]) for name in ("begins", "ends"))
            content = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return tree.Scope([begins, *content, ends], lineno=line)

    def call(function, *args):
        return tree.Call(tree.EnvironmentAttribute(function.__name__), list(args), [], None, None)

    class Rewriter(NodeTransformer):
        """Puts the calls that pay into a template: at the beginning of what may run often, around what makes lists and compares."""

        count = 0

        def visit(self, node):
            self.count += 1 + (len(node.data) >> 4 if isinstance(node, tree.TemplateData) else 0)
            return super().visit(node)

        def body(self, node):
            before = self.count
            node = self.generic_visit(node)
            node.body.insert(0, tree.ExprStmt(call(spend, tree.Const(self.count - before)), lineno=node.lineno))
            return node

        def visit_For(self, node):
            node = self.body(node)
            if node.test is not None:
                node.iter = call(each, node.iter, tree.Const(sum(1 for _ in node.test.find_all(tree.Node)) + 1))
            return node

        visit_Macro = visit_CallBlock = body

        def weighed(self, node):
            return call(weigh, self.generic_visit(node))

        visit_List = visit_Dict = weighed

        def visit_Tuple(self, node):
            return self.weighed(node) if node.ctx == "load" else self.generic_visit(node)

        def visit_Getitem(self, node):
            node = self.generic_visit(node)
            return call(sliced, node) if isinstance(node.arg, tree.Slice) else node

        def visit_Concat(self, node):
            return call(paste, *self.generic_visit(node).nodes)

        def visit_Compare(self, node):
            node = self.generic_visit(node)
            node.expr = call(shown, node.expr)
            for operand in node.ops:
                operand.expr = call(shown, operand.expr)
            return node

        def visit_ScopedEvalContextModifier(self, node):
            raise jinja2.TemplateSyntaxError("autoescape has no place in a chat template", node.lineno)

    class Undefined(jinja2.Undefined):
        """Names no value in its message, which may be as long as anything."""

        @property
        def _undefined_message(self):
            if not isinstance(self._undefined_name, (str, int)) or self._undefined_hint:
                return self._undefined_hint or f"an element of a {type(self._undefined_obj).__name__} is undefined"
            return super()._undefined_message[:300]

    class Names(Namespace):
        """namespace(...); names of Python's own are refused."""

        def __init__(*args, **values):
            for name in dict(*args[1:], **values):
                Names.check(name)
            Namespace.__init__(*args, **values)

        def __setitem__(self, name, value):
            Names.check(name)
            Namespace.__setitem__(self, name, value)

        def __repr__(self):
            return "<namespace>"

        @staticmethod
        def check(name):
            if str(name).startswith("_"):
                raise jinja2.TemplateRuntimeError(f"namespace: {str(name)[:60]!r} begins with _")

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(OPERATORS)
        error, rewriter, own = jinja2.TemplateError, Rewriter, (spend, weigh, shown, sliced, each, paste)

        def call_binop(self, context, operator, left, right):
            OPERATORS[operator](left, right)
            return sliced(super().call_binop(context, operator, left, right))

        def wrap_str_format(self, value):
            wrapper = super().wrap_str_format(value)
            if wrapper is None:
                return None

            def run(*args, **values):
                _filled(value.__self__, [*args, *values.values()])
                return wrapper(*args, **values)

            return run

        def call(__self, __context, __function, *args, **values):
            if __function in __self.own:
                return __function(*args)
            owner = __function.__self__ if isinstance(__function, (BuiltinMethodType, MethodType)) else None
            if isinstance(owner, (str, list, tuple, dict, int, float)):
                args = _held(args)
                _method(owner, __function.__name__, args)
            spend(1)
            return weigh(super().call(__context, __function, *args, **values))

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=shown,
                              undefined=Undefined, cache_size=0)
    vars(environment).update({function.__name__: function for function in Environment.own})
    filters = {**environment.filters, "tojson": tojson}
    environment.filters = {name: _filter(name, filters[name]) for name in FILTERS}
    environment.tests = {name: _filter(name, test) for name, test in environment.tests.items()}
    names = {name: environment.globals[name] for name in ("range", "dict", "cycler", "joiner")}
    environment.globals = {**names, "namespace": Names, "raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON without the escapes that HTML needs; marks of chat.py stay what they are."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return re.sub("[^\0-\x7f]", lambda m: m.group() if m.group() in MARKS else json.dumps(m.group())[1:-1], text) if ensure_ascii else text


def raise_exception(message):
    """The template's own refusal."""
    raise ValueError(str(message))


def strftime_now(format):
    """The date and time of now, as `format` says."""
    from datetime import datetime

    _filled(format, ())
    return datetime.now().strftime(format)
