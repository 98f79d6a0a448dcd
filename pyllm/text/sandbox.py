"""Jinja chat templates, which come with models from anywhere: jinja2's immutable sandbox, set up as the transformers library does."""
import json
import re
from functools import lru_cache

from ..errors import FormatError
from .chat import MARKS

LONGEST = 1 << 18  # characters of a template
ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, SyntaxError, MemoryError)


def render(template, variables):
    """template: Jinja text; variables: dict of plain values -> text. FormatError: the template is broken, refuses, or attacks."""
    environment = _environment()
    try:
        return _compiled(template).render(variables)
    except (environment.error, *ERRORS) as error:
        raise FormatError(f"chat template: {_words(error)}") from None


def _words(error):
    text = str(error)[:300] or type(error).__name__
    return f"line {error.lineno}: {text}" if isinstance(getattr(error, "lineno", None), int) else text


@lru_cache(8)
def _compiled(template):
    if len(template) > LONGEST:
        raise FormatError(f"chat template: {len(template)} characters; one of more than {LONGEST} is not read")
    return _environment().from_string(template)


@lru_cache(1)
def _environment():
    try:
        import jinja2
    except ImportError:
        raise ImportError("chat template: needs jinja2. Hint: pip install \"pyllm[chat]\", or tokenizer.chat_template = the name of a "
                          "built-in one, such as \"chatml\"") from None
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %} around what the assistant says: its content, as it is."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return jinja2.nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.error = jinja2.TemplateError
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
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

    return datetime.now().strftime(format)
