"""Chat templates of strangers: what they cost is bounded, and whatever they do is one line."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.checkpoint.templates import render
from jaxinfer.errors import InputError

MESSAGES = [{"role": "user", "content": "hello"}]

GREEDY = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "loops without text": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops of loops": "{% for x in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "width of %": "{{ '%1000000000d' % 1 }}",
    "width of % from a value": "{{ '%*d' % (1000000000, 1) }}",
    "width of format": "{{ '{:>1000000000}'.format(1) }}",
    "width within a width": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "filter format": "{{ '%1000000000d' | format(1) }}",
    "text times number": "{{ 'a' * 1000000000 }}",
    "number times text": "{{ 1000000000 * 'a' }}",
    "list times number": "{{ [1] * 1000000000 }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "method center": "{{ 'a'.center(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'a' | indent(1000000000, first=true) }}",
    "indented json": "{{ messages | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "power": "{{ 10 ** 10000000000 }}",
    "power in a condition": "{% if 2 ** 1000000000 %}{% endif %}",
    "doubled text": "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "added text": "{% set ns = namespace(x='aaaa') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "set block": "{% set ns = namespace(x='aaaa') %}{% for i in range(64) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "doubled list": "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "doubled mapping": "{% set ns = namespace(x=1) %}{% for i in range(64) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}"
    "{% endfor %}{{ ns.x | tojson }}",
    "squares": "{% set ns = namespace(x=99) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "replaced": "{% set a = 'a' * 10000 %}{{ a | replace('a', a) }}",
    "method replace": "{% set a = 'a' * 10000 %}{{ a.replace('', a) }}",
    "join": "{% set a = 'a' * 10000 %}{{ a.join(['b'] * 10000) }}",
    "filter join": "{% set a = 'a' * 10000 %}{{ ['b'] * 10000 | join(a) }}{{ (['b'] * 10000) | join(a) }}",
    "calls of calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "width of a date": "{{ strftime_now('%1000000000d') }}",
    "long text searched": "{% set a = 'ab' * 4000000 %}{% for i in range(99999) %}{{ a.count('c') }}{% endfor %}",
    "stripped": "{% set a = 'a' * 8000000 %}{{ a.strip('b' * 8000000 ~ 'a') }}",
    "trimmed": "{% set a = 'a' * 8000000 %}{{ a | trim('b' * 8000000 ~ 'a') }}",
    "translated": "{{ ('a' * 800000).translate({97: 'b' * 100000}) }}",
    "tabs": "{{ ('\t' * 1600000).expandtabs(9000) }}",
    "lines": "{{ ('\n' * 1600000) | indent('x' * 9000, blank=true) }}",
    "json with a long indent": "{{ ([1] * 900000) | tojson(indent='x' * 9000) }}",
    "join of a map": "{{ range(99999) | map('string') | join('a' * 100000) }}",
    "map of long texts": "{{ range(99999) | map('string') | map('center', 9999) | list | length }}",
    "wrapped": "{{ ('a ' * 500000) | wordwrap(1, wrapstring='b' * 100000) }}",
    "values of format": "{% set a = 'a' * 8000000 %}{{ ('{0}' * 300).format(a) }}",
    "values of %": "{% set a = 'a' * 8000000 %}{{ ('%(a)s' * 300) % {'a': a} }}",
    "widths of %": "{{ ('%(a)9999d' * 100000) % {'a': 1} }}",
    "sum of lists": "{{ ([[1]] * 500000) | sum(start=[]) }}",
    "tags": "{{ ('<>' * 4000000) | striptags }}",
    "texts that are kept": "{% for i in range(3000) recursive %}{% set x = 'e' * (16000000 + loop.index) %}"
    "{% if loop.depth0 < 100 %}{{ loop([1]) }}{% endif %}{% endfor %}",
    "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "length": "a" * (1 << 21),
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_would_take_too_much_is_refused(name):
    start = time.thread_time()
    with pytest.raises(InputError, match=r"^the chat template "):
        render(GREEDY[name], {"messages": MESSAGES})
    assert time.thread_time() - start < 10


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "must be a text .a Jinja template., not None"),
        (["a"], "must be a text"),
        ({"default": "a"}, "must be a text"),
        ("{{ 1 / 0 }}", "failed: division by zero"),
        ("{{ 1 % 0 }}", "failed"),
        ("{% include 'x' %}", "failed"),
        ("{% import 'x' as y %}", "failed"),
        ("{% extends 'x' %}", "failed"),
        ("{{ x | nofilter }}", "failed: No filter named 'nofilter'"),
        ("{{ x is notest }}", "failed: No test named 'notest'"),
        ("{{ missing.attribute }}", "failed: 'missing' is undefined"),
        ("{{ 'a' + 1 }}", "failed"),
        ("{{ messages[0]['content'](1) }}", "failed: 'str' object is not callable"),
        ("{{ [].append(1) }}", "failed"),
        ("{{ messages.append(1) }}", "failed"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "failed: .*unsafe|failed"),
        ("{{ namespace(__class__=1) }}", "failed: a name in a namespace must not begin with an underscore"),
        ("{{ raise_exception('roles must alternate') }}", "failed: roles must alternate"),
        ("{% for %}", "failed"),
        ("{% generation %}", "failed"),
        ("{{ messages | tojson(indent=messages) }}", "failed"),
    ],
)
def test_what_goes_wrong_in_a_template_is_one_line(template, message):
    with pytest.raises(InputError, match=f"the chat template {message}") as caught:
        render(template, {"messages": MESSAGES})
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_namespaces_within_namespaces_are_not_written_out():
    doubled = "{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}"
    assert render("{% set ns = namespace(x=1) %}" + doubled + "{{ ns.x }}", {}) == "<Namespace>"


def test_a_long_chat_is_no_abuse():
    template = "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m['content'] | trim + '\n' }}{% endfor %}"
    chat = [{"role": "user", "content": "word " * 500}] * 2000
    assert len(render(template, {"messages": chat})) == 2000 * (len("<|user|>") + 2499 + 1)


WORDS = ["{{", "}}", "{%", "%}", "for", "in", "if", "else", "endfor", "endif", "set", "endset", "macro", "endmacro"]
WORDS += [
    "messages",
    "m",
    "x",
    "'a'",
    "1",
    "999999",
    "*",
    "**",
    "+",
    "~",
    "%",
    "|",
    "tojson",
    "join",
    "range",
    "(",
    ")",
]
WORDS += [
    "[",
    "]",
    ".",
    ",",
    "namespace",
    "loop",
    "recursive",
    "is",
    "not",
    "defined",
    "-",
    "=",
    "==",
    "role",
    "filter",
]
WORDS += ["generation", "call", "\n"]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORDS), max_size=25), st.integers(0, 2**32))
def test_any_template_is_rendered_or_refused(pieces, seed):
    whole = "{% for m in messages %}{{ m['role'] * 2 }}{% if loop.last %}{{ m.content | trim }}{% endif %}{% endfor %}"
    chosen = random.Random(seed)
    cut = chosen.randrange(len(whole))
    for template in (" ".join(pieces), whole[:cut] + " ".join(pieces) + whole[cut + chosen.randrange(9) :]):
        start = time.thread_time()
        try:
            said = "the chat template rendered" if isinstance(render(template, {"messages": MESSAGES}), str) else ""
        except InputError as error:
            said = str(error)
        assert said.startswith("the chat template ")
        assert time.thread_time() - start < 10
