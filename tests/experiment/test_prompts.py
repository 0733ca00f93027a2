import json

import pytest

from jaxinfer.errors import InputError
from jaxinfer.experiment import Prompt, load_prompts
from jaxinfer.experiment.schema import PromptSpec

pytestmark = pytest.mark.quick


def test_the_bundled_set_has_ten_families():
    prompts = load_prompts(PromptSpec("quickstart"))
    assert len({prompt.family for prompt in prompts}) == len(prompts) == 10
    assert len(load_prompts(PromptSpec("quickstart", limit=3))) == 3


def test_both_forms_of_a_line(tmp_path):
    path = tmp_path / "mixed.jsonl"
    lines = [
        {"family": "qa", "prompt": "one\u2028two"},
        {"prompt": "three"},
        {"question_id": 81, "category": "writing", "turns": ["four", "five"]},
        {"category": "rag", "turns": ["six"]},
    ]
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    assert load_prompts(PromptSpec("mixed.jsonl"), tmp_path) == (
        Prompt("qa", "one\u2028two"),
        Prompt("all", "three"),
        Prompt("mt-bench", "four"),
        Prompt("rag", "six"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "p.jsonl: holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": \n', "p.jsonl:2: is not valid JSON: Expecting value: line 1 column 12 (char 11)"),
        ('["a"]\n', 'p.jsonl:1: expected {"family": ..., "prompt": ...} or {"category": ..., "turns": [...]}'),
        ('{"turns": []}\n', 'p.jsonl:1: expected {"family": ..., "prompt": ...} or {"category": ..., "turns": [...]}'),
        ('{"prompt": " "}\n', "p.jsonl:1: the prompt must be text, and not empty"),
        ('{"prompt": "a", "family": 3}\n', "p.jsonl:1: the family must be text, got 3"),
    ],
)
def test_a_bad_file_is_one_line_with_its_number(tmp_path, text, expected):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InputError) as caught:
        load_prompts(PromptSpec("p.jsonl"), tmp_path)
    assert str(caught.value) == f"{tmp_path}/{expected}"


def test_an_unknown_source_names_the_nearest_set():
    with pytest.raises(InputError, match=r"'quikstart' is no \.jsonl file and no bundled set; nearest: 'quickstart'"):
        load_prompts(PromptSpec("quikstart"))


def test_an_empty_prompt_of_the_config_is_named():
    with pytest.raises(InputError, match=r"prompts.source.1: the prompt must be text"):
        load_prompts(PromptSpec(("a", "")))
