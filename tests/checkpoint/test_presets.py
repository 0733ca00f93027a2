"""Models by their shape alone."""

import pytest

import jaxinfer
from jaxinfer import InputError
from jaxinfer.checkpoint import presets
from jaxinfer.checkpoint.families import FAMILIES
from jaxinfer.checkpoint.gguf import open_gguf
from jaxinfer.checkpoint.presets import preset
from jaxinfer.checkpoint.published import PUBLISHED
from jaxinfer.checkpoint.sources import builtin_path
from jaxinfer.network.counting import parameters

# As the checkpoints on the hub have them, in the metadata of their safetensors; a tied head counts once.
ONE_OF_A_FAMILY = {
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma3-1b": 999_885_952,
    "falcon-7b": 6_921_720_704,
    "gpt-oss-20b": 20_914_757_184,
    "deepseek-v3": 671_026_419_200,
    "mamba-2.8b": 2_768_345_600,
}
THE_OTHERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-3b": 3_212_749_824,
    "mixtral-8x22b": 140_620_634_112,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma3-270m": 268_098_176,
    # The multimodal checkpoints also hold SigLIP, 416,866,032 parameters, and a projector of 1152 (D + 1).
    "gemma3-4b": 4_300_079_472 - 416_866_032 - 1152 * (2560 + 1),
    "gemma3-12b": 12_187_325_040 - 416_866_032 - 1152 * (3840 + 1),
    "gemma3-27b": 27_432_406_640 - 416_866_032 - 1152 * (5376 + 1),
    "falcon-40b": 41_303_293_952,
    "gpt-oss-120b": 116_829_156_672,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}
OPT = [name for name in PUBLISHED if name.startswith("opt-")]


@pytest.mark.quick
@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
def test_shapes_have_the_published_number_of_parameters(name):
    assert parameters(preset(name)) == ONE_OF_A_FAMILY[name]


@pytest.mark.parametrize("name", THE_OTHERS)
def test_the_other_sizes_have_it_too(name):
    assert parameters(preset(name)) == THE_OTHERS[name]


@pytest.mark.quick
def test_no_shape_is_left_out_above():
    assert {*ONE_OF_A_FAMILY, *THE_OTHERS, *OPT} == set(PUBLISHED)
    assert not set(ONE_OF_A_FAMILY) & set(THE_OTHERS)
    counted = {preset(name).family for name in ONE_OF_A_FAMILY} | {"opt"}
    assert counted == {config.family for config in presets.SHAPES.values()}
    assert counted <= {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", OPT)
def test_opt_has_the_parameters_that_its_paper_describes(name):
    """Zhang et al. 2022, table 1: L layers of width d, whose products have biases and whose MLP is four times as wide.

    The two rows of the position table that stand before the first position are no part of the network here.
    """
    layers, width = {
        "125m": (12, 768),
        "1.3b": (24, 2048),
        "2.7b": (32, 2560),
        "6.7b": (32, 4096),
        "13b": (40, 5120),
        "30b": (48, 7168),
        "66b": (64, 9216),
    }[name.removeprefix("opt-")]
    attention, mlp, norms = 4 * (width**2 + width), 8 * width**2 + 5 * width, 4 * width
    whole = layers * (attention + mlp + norms) + (50_272 + 2048 + 2) * width
    assert parameters(preset(name)) == whole


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_preset_is_what_loading_the_real_checkpoint_gives(name):
    assert preset(name) == open_gguf(builtin_path(name))[2]


@pytest.mark.quick
def test_every_field_that_is_not_in_the_counts():
    """As the published config.json files have them: positions, bases, windows, bounds."""
    rope = {name: config.kinds[0].rope for name, config in presets.SHAPES.items()}
    bases = {"llama-2-7b": 1e4, "llama-3-8b": 5e5, "mixtral-8x7b": 1e6, "qwen2.5-7b": 1e6, "smollm2-1.7b": 130_000.0}
    assert {name: rope[name].theta for name in bases} == bases
    lengths = {
        "llama-2-7b": 4096,
        "llama-3-8b": 8192,
        "mistral-7b": 32_768,
        "mixtral-8x22b": 65_536,
        "qwen3-8b": 40_960,
    }
    assert {name: preset(name).max_positions for name in lengths} == lengths
    assert rope["llama-3.1-405b"].scaling.factor == 8.0
    assert rope["llama-3.2-1b"].scaling.factor == 32.0
    windows = {
        "mistral-7b": [4096] * 32,
        "mixtral-8x7b": [None] * 32,
        "gpt-oss-20b": [128, None] * 12,
        "gemma3-27b": ([1024] * 5 + [None]) * 10 + [1024] * 2,
    }
    assert {name: [kind.window for kind in preset(name).layers] for name in windows} == windows
    experts = {"mixtral-8x7b": (8, 2), "qwen3-30b-a3b": (128, 8), "gpt-oss-120b": (128, 4), "deepseek-v3": (256, 8)}
    last = {name: preset(name).layers[-1].moe for name in experts}
    assert {name: (moe.experts, moe.top_k) for name, moe in last.items()} == experts
    assert [kind.moe is None for kind in preset("deepseek-v3").layers[:4]] == [True, True, True, False]
    assert preset("gemma3-27b").query_scale == 168**-0.5
    assert preset("falcon-7b").n_kv_heads == 1
    assert preset("falcon-40b").n_kv_heads == 8


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("llama2-7b", "llama-2-7b"),
        ("llama3-8b", "llama-3-8b"),
        ("Llama_2_70B", "llama-2-70b"),
        ("qwen-2.5-0.5b", "qwen2.5-0.5b"),
        ("gemma-3-270m", "gemma3-270m"),
        ("SmolLM2-1.7B", "smollm2-1.7b"),
    ],
)
def test_other_spellings(given, name):
    assert preset(given) is presets.SHAPES[name]
    assert presets.shape_of(f"random:{given}") is presets.SHAPES[name]


@pytest.mark.quick
def test_no_two_names_are_spelled_alike():
    assert all(preset(name) is presets.SHAPES[name] for name in PUBLISHED)
    assert all(model.repo.count("/") == 1 for model in PUBLISHED.values())


@pytest.mark.quick
def test_a_shape_generates(tiny_llama, monkeypatch):
    monkeypatch.setitem(presets.SHAPES, "tiny", tiny_llama.config)
    model = jaxinfer.load("random:tiny")
    assert (model.name, model.config, model.tokenizer) == ("random:tiny", tiny_llama.config, None)
    assert len(model.generate([[1, 2, 3]], max_new_tokens=2).tokens[0]) == 2
    with pytest.raises(InputError, match="a text prompt needs a tokenizer, and model random:tiny has none"):
        model.generate("text")


@pytest.mark.quick
def test_an_unknown_shape_names_those_that_are():
    with pytest.raises(InputError, match=r"^random:llama3: is no known shape: llama-2-7b, .*; nearest: 'llama"):
        jaxinfer.load("random:llama3")
    with pytest.raises(InputError, match=r"^mixtral-8x8b: is no known shape: .*; nearest: 'mixtral-8x7b'$"):
        preset("mixtral-8x8b")
    with pytest.raises(InputError, match=r"^: is no known shape"):
        preset("")
    assert presets.shape_of("llama-2-7b") is None
