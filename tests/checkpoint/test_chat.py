"""Chat templates against transformers' rendering."""

import pytest

from jaxinfer.checkpoint.chat import render_chat
from jaxinfer.errors import InputError

CHAT_TEMPLATES = [
    "{% for m in messages %}\n  {% if loop.first %}\n{{ m.role | upper }}\n  {% endif %}\n{{ m|tojson }}\n{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{{ bos_token }}{{ messages | tojson(indent=2) }}{% if add_generation_prompt %}>{% endif %}{{ eos_token }}",
    "{{ strftime_now('%Y') }}{% if tools is not none %}tools{% endif %}",
]


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_templates_render_as_in_transformers(template):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "<é> & 'x'"}, {"role": "assistant", "content": "y"}]
    words = {"bos_token": "<s>", "eos_token": "</s>"}
    (expected,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **words)
    assert render_chat(template, messages, **words) == expected


def test_templates_that_refuse():
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(InputError, match="the chat template failed: roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", messages)
    with pytest.raises(InputError, match="the chat template failed"):
        render_chat("{% for %}", messages)
    with pytest.raises(InputError, match="the chat template failed"):
        render_chat("{{ messages.append(1) }}", messages)  # the sandbox does not let a template change anything
