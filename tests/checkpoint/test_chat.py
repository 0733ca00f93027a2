"""Chat templates against transformers' rendering, and what messages, tools and variables may be."""

import pytest

from jaxinfer.checkpoint.chat import render_chat
from jaxinfer.errors import InputError

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMESPACE = (
    "{%- set ns = namespace(last=0, seen=false) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- set ns.seen = true -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages[::-1] -%}[{{ loop.revindex }}/{{ loop.length }}:{{ m.role | title }}"
    "{%- if loop.last and ns.seen %} last={{ ns.last }}{% endif -%}]{%- endfor -%}"
)
MACROS = (
    "{%- macro shown(params, depth=0) -%}{%- for name, p in params.items() -%}{{ '  ' * depth }}{{ name }}:"
    "{%- if p is mapping %}\n{{ shown(p, depth + 1) }}{% elif p is string %}{{ p | trim | upper }}\n"
    "{% else %}{{ p | tojson }}\n{% endif -%}{%- endfor -%}{%- endmacro -%}"
    "{%- if tools %}{% for t in tools %}{{ shown(t.function.parameters) }}{% endfor %}{% endif -%}"
    "{%- for m in messages -%}{{ m.role }}|{{ (m.content or '') | replace('x', 'y') | indent(2) }}"
    "{%- if m.tool_calls is defined -%}{%- for c in m.tool_calls -%}<call>{{ c.function | tojson(indent=4) }}</call>"
    "{%- endfor -%}{%- endif -%}{% endfor %}"
)
THINKING = (
    "{%- for m in messages -%}{%- set content = m.content if m.content is string else '' -%}"
    "{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if m.reasoning_content is defined -%}<think>{{ m.reasoning_content }}</think>{%- endif -%}"
    "{{ content }}{% if not content.startswith('a') %}{{ eos_token }}{% endif %}{%- endfor -%}"
    "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false -%}<think></think>"
    "{%- endif -%}"
)
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "loops": "{% for m in messages %}\n  {% if loop.first %}\n{{ m.role | upper }}\n  {% endif %}\n{{ m|tojson }}\n"
    "{% endfor %}",
    "break": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "json": "{{ bos_token }}{{ messages | tojson(indent=2) }}{% if add_generation_prompt %}>{% endif %}{{ eos_token }}",
    "date": "{{ strftime_now('%Y') }}{% if tools is not none %}tools{% endif %}",
    "lists": "{{ [1, 2] + [messages|length] }}{{ (1, 'a') }}{{ {'k': messages[0].role} }}{{ 'a' ~ 1 ~ ['b'] }}"
    "{{ '%s:%05.1f' % ('x', 2.5) }}{{ '-' * 3 }}{{ range(3) | list }}"
    "{{ messages | map(attribute='role') | join(', ') }}",
    "sets": "{% set a, b = messages[0].role, 2 %}{% set t %}{{ a }}-{{ b }}{% endset %}{{ t | length }}{{ t }}",
    "recursive": "{% for x in [[1, [2]], 3] recursive %}{% if x is iterable %}({{ loop(x) }})"
    "{% else %}{{ x }}{% endif %}{% endfor %}",
    "chatml": CHATML,
    "namespace": NAMESPACE,
    "macros": MACROS,
    "thinking": THINKING,
    "generation": GENERATION,
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first }}"
    "{{ messages | groupby('role') | length }}{{ 'b a' | title }}{{ [3, 1] | sort }}{{ 'a,b'.split(',') | last }}",
}
WORDS = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = [
    {"role": "system", "content": "<é> & 'x'"},
    {"role": "user", "content": "ax\nbx"},
    {"role": "assistant", "content": "<think>why</think>\n\nso"},
]
CALLS = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "reasoning": "need it",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
        ],
    },
    {"role": "tool", "name": "weather", "content": "{}"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def theirs(template, messages, **options):
    from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

    chats = [_normalize_chat_messages(messages)]
    return render_jinja_template(chats, chat_template=template, **options)[0][0]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [TURNS, TURNS[1:2], CALLS], ids=["turns", "one", "calls"])
def test_templates_render_as_in_transformers(name, messages):
    pytest.importorskip("transformers")
    if messages is CALLS and name in ("chatml", "filters"):
        messages = [message | {"content": message["content"] or ""} for message in messages]
    options = {"tools": TOOLS if messages is not TURNS else None, "enable_thinking": False, **WORDS}
    expected = theirs(TEMPLATES[name], messages, add_generation_prompt=True, **options)
    for _ in range(2):
        assert render_chat(TEMPLATES[name], messages, **options) == expected


@pytest.mark.parametrize("template", [CHATML, CHATML.replace("message['content']", "message['content'] | trim")])
def test_a_last_message_is_continued_as_in_transformers(template):
    pytest.importorskip("transformers")
    turns = [*TURNS[:2], {"role": "assistant", "content": "It is \n"}]
    expected = theirs(template, turns, continue_final_message=True, add_generation_prompt=False)
    assert render_chat(template, turns, continue_final_message=True) == expected
    assert not expected.endswith("<|im_end|>\n")


def test_parts_are_joined_unless_the_template_takes_them():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render_chat(CHATML, parts).startswith("<|im_start|>user\na\nb<|im_end|>")
    takes = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p['type'] == 'text' %}<{{ p['text'] }}>{% endif %}{% endfor %}{% endif %}{% endfor %}"
    )
    assert render_chat(takes, parts) == theirs(takes, parts) == "<a><b>"
    assert render_chat(takes, TURNS[1:2]) == "ax\nbx"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": {"role": "user"}}, "messages must be a list"),
        ({"messages": ["hello"]}, 'message 0 must be {"role": ..., "content": ...}'),
        ({"messages": [TURNS[0], {"role": 3, "content": ""}]}, "message 1 must be"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 0: content must be a text or a list of parts"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "message 0: parts of type 'image' are not supported",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 0: a part must be"),
        ({"messages": [{"role": "user", "content": "", 3: 4}]}, "message 0 has the key 3: keys must be texts"),
        ({"messages": [{"role": "user", "content": "", "x": object}]}, "message 0 holds <class 'object'>"),
        ({"tools": TOOLS[0]}, "tools must be a list"),
        ({"tools": [print]}, "tools must be a list of mappings, such as JSON schemas"),
        ({"documents": ["text"]}, "documents must be a list of mappings"),
        ({"enable_thinking": {1, 2}}, "enable_thinking holds"),
        ({"add_generation_prompt": "yes"}, "add_generation_prompt='yes' must be True or False"),
        ({"continue_final_message": True, "messages": []}, "the last message has no content to continue"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "leave add_generation_prompt out"),
    ],
)
def test_other_forms_are_refused(given, message):
    with pytest.raises(InputError) as caught:
        render_chat(CHATML, **{"messages": TURNS, **given})
    assert message in str(caught.value)


def test_a_message_within_itself_is_refused():
    message = {"role": "user", "content": "x"}
    message["again"] = message
    with pytest.raises(InputError, match="message 0 is nested too deep"):
        render_chat(CHATML, [message])
