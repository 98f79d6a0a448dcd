"""Chat templates that attack: one clear error, in about a second, without the memory they ask for. pytest tests/text/test_sandbox.py"""
import json
import random
import resource
import sys
import time

import pytest

from pyllm.errors import FormatError
from pyllm.text.chat import BUILT_IN
from pyllm.text.sandbox import LONGEST, render

pytest.importorskip("jinja2")
TALK = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "x"}], "add_generation_prompt": True,
        "bos_token": "<s>", "tools": None}
TWICE = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
ATTACKS = [
    # Python behind the template
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__init__.__globals__ }}", "{{ messages[0].pop('role') }}",
    "{{ messages.append(1) }}", "{{ messages[0].__setitem__('a', 1) }}", "{{ (messages|attr('__class__')).mro() }}",
    "{{ '{0.__class__}'.format(messages) }}", "{{ self.__init__ }}{{ self._TemplateReference__context.call() }}",
    "{{ cycler.__init__.__globals__.os }}", "{{ namespace.__init__.__globals__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "{{ namespace(__class__=1) }}", "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}", "{% extends 'x' %}", "{{ ''.encode() }}", "{{ (1).to_bytes(99999999, 'big') }}", "{{ lipsum() }}",
    "{{ messages[0].clear() }}", "{{ joiner.__globals__ }}", "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    # time
    "{% for i in range(10**9) %}{% endfor %}", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999)|select('odd')|list }}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% if -1 in r|list %}{% endif %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in [[[]]] recursive %}{{ loop([a, a]) }}{% endfor %}", "{{ 9**9**9 }}", "{{ (9**4000)**4000 }}", "{{ '%s' % (9**5000) }}",
    "{{ 1.5|round(999999999, 'ceil') }}", "{{ ('a'*1000000).rfind('b' ~ 'a'*500000) }}", "{{ range(10000)|map('center', 9)|list }}",
    TWICE + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}", "{% call(x) f() %}{% endcall %}",
    "{% for i in range(99999) %}" + "{{ i }}" * 8000 + "{% endfor %}", "{{ [[1]] * 99999 | sum(start=[]) }}", "{{ 'a' < 1 }}",
    # memory
    "{{ 'a' * 10**10 }}", "{{ 10**10 * 'a' }}", "{{ [1] * 10**9 }}", "{{ ['a' * 100000] * 100000 }}",
    "{{ ('a' * 1000).replace('', 'b' * 100000) }}", "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "{{ ('x' * 100000).join('a' * 100000) }}", "{{ range(99999)|join('x' * 100000) }}",
    "{{ range(9999)|map('string')|join('x' * 99999) }}", "{{ ('x' * 99999).join(messages * 999|map(attribute='role')) }}",
    "{{ '%999999999d' % 1 }}", "{{ '%*d' % (999999999, 1) }}", "{{ '{:999999999}'.format(1) }}", "{{ '{:{}}'.format(1, 999999999) }}",
    "{{ '%.999999999f'|format(1.5) }}", "{{ ('%s' * 100000) % ('a' * 100000) }}", "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "{{ 'a'.center(999999999) }}", "{{ 'a'|center(999999999) }}", "{{ 'a'.zfill(999999999) }}", "{{ 'a\\n' | indent(999999999) }}",
    "{{ ('a\\n' * 100000) | indent('x' * 100000) }}", "{{ [1, 2]|tojson(indent=999999999) }}",
    "{{ range(9999)|list|tojson(separators=['x' * 99999, ':']) }}", "{{ range(9)|batch(999999999, 'x')|list }}",
    "{{ range(9)|slice(999999999)|list }}", "{{ 'a'|wordwrap(1, wrapstring='x' * 999999) }}",
    TWICE + "{% set ns.x = ns.x + ns.x %}{% endfor %}", TWICE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    TWICE + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    TWICE + "{% set ns.x = [ns.x] + [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    TWICE + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x.items() }}",
    TWICE + "{% set ns.x = ['', '']|map('default', ns.x, true)|list %}{% endfor %}{{ ns.x == ns.x|list }}",
    TWICE + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}", TWICE + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    TWICE + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|string }}",
    TWICE + "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ {}[[ns.x] * 99999] }}", "{{ {}[['a' * 100000] * 9000] + 1 }}",
    TWICE + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ {}[ns.x] + 1 }}", "{{ strftime_now('%999999999d') }}",
    "{{ strftime_now('%Y' * 10000000) }}",
    # the parser
    "{{", "{% if %}", "{{ 'a }}", "{% endfor %}", "{{ x|nosuch }}", "{{ " + "(" * 30000 + " }}", "{{ " + "[" * 9000 + "]" * 9000 + " }}",
    "{{ " + "-" * 60000 + "1 }}", "{% if x %}" * 6000, "{% for x in y %}" * 4000, "{% for x in y %}" * 50 + "{% endfor %}" * 50,
    "{#" * 30000, "{{ 'a'" + " ~ 'a'" * 9000 + " }}", "{{ 1" + " + 1" * 15000 + " }}", "{{ x" + ".x" * 30000 + " }}",
    "{{ x" + "|upper" * 9000 + " }}", "{{ " + "9" * 60000 + " }}", "{{ '\\ud800' }}\ud800{% endif %}", "x" * (LONGEST + 1),
    "{% set x = x %}" * 9000 + "{{", "{{ a }}" * 9000 + "{{",
    # its own refusal
    "{{ raise_exception('roles must alternate') }}",
]


@pytest.fixture(scope="module", autouse=True)
def limited():
    """300 MB more than now: what asks for more fails, and not as a FormatError of ours."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("template", ATTACKS, ids=lambda t: t[:60])
def test_attacks_end_in_one_clear_error(template):
    began = time.process_time()
    try:
        text = render(template, TALK)
    except FormatError as error:
        assert str(error).startswith("chat template: ") and "\n" not in str(error).strip() and len(str(error)) < 500
        assert "MemoryError" not in str(error)
    else:
        assert len(text) < 10_000, "a text of %d characters" % len(text)
    assert time.process_time() - began < 2  # seconds; twice what it takes here


def test_long_conversations_fit_into_the_budget():
    quadratic = ("{% for m in messages %}{% if messages[loop.index0:]|length and messages|length %}{{ m.role ~ m.content }}{% endif %}"
                 "{% endfor %}")
    talk = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1000)]
    for template in (BUILT_IN["chatml"][2], quadratic):
        assert len(render(template, {**TALK, "messages": talk})) > 1_000_000
    assert len(render(BUILT_IN["chatml"][2], {**TALK, "messages": [{"role": "user", "content": "x" * 10_000_000}]})) > 10_000_000


def test_mutated_templates_are_format_errors_at_most():
    rng = random.Random(0)
    seeds = [text for _, _, text in BUILT_IN.values()] + [a for a in ATTACKS if len(a) < 200]
    parts = ["{{", "}}", "{%", "%}", "for", "in", "messages", "|", "'", "(", ")", "[", "]", "endfor", "{#", "#}", "*", "**", "~", "9999",
             "x", " ", "\0", "\n"]
    began, failed = time.process_time(), 0
    for _ in range(1500):
        text = rng.choice(seeds)
        for _ in range(rng.randint(1, 3)):
            at = rng.randint(0, len(text))
            text = rng.choice((text[:at] + rng.choice(parts) + text[at:], text[:at] + text[at + rng.randint(1, 6):], text[:at],
                               text[at:] + text[:at], text[:at] + rng.choice(seeds)[: rng.randint(1, 40)] + text[at:]))
        try:
            render(text, json.loads(json.dumps(TALK)))
        except FormatError:
            failed += 1
    assert failed > 500 and time.process_time() - began < 120
