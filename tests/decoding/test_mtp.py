"""Multi-token-prediction modules: their drafts are those of a slow loop in torch, and the text stays greedy's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import jaxinfer
from jaxinfer import MTP, Adaptive, Dense, InputError, LayerKind, Lookup, Model, ModelConfig, Sampling, Segment, Window
from jaxinfer.decoding.contract import Context
from jaxinfer.heads import mtp
from jaxinfer.runtime.generation import Generation

LAYERS, MODULES, V = 3, 2, 32
SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=4,
    kv_lora_rank=24,
    q_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    moe_intermediate_size=20,
    num_experts_per_tok=2,
    n_routed_experts=4,
    n_group=2,
    topk_group=1,
    max_position_embeddings=256,
    initializer_range=0.3,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory):
    """A folder as DeepSeek-V3's, with two modules, and what torch needs of it: backbone, blocks, other tensors."""
    torch.manual_seed(0)
    folder, other = tmp_path_factory.mktemp("deepseek"), tmp_path_factory.mktemp("modules")
    backbone, blocks = (
        DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES, num_hidden_layers=n, first_k_dense_replace=first)).eval()
        for n, first in ((LAYERS, 1), (MODULES, 0))
    )
    backbone.save_pretrained(folder)
    blocks.save_pretrained(other)
    tensors, extra = load_file(folder / "model.safetensors"), {}
    for name, x in load_file(other / "model.safetensors").items():
        if name.startswith("model.layers."):
            number, rest = name.removeprefix("model.layers.").split(".", 1)
            extra[f"model.layers.{LAYERS + int(number)}.{rest}"] = x
    for k in range(MODULES):
        shapes = {"eh_proj": (48, 96), "enorm": (48,), "hnorm": (48,), "shared_head.norm": (48,)}
        for name, shape in shapes.items():
            extra[f"model.layers.{LAYERS + k}.{name}.weight"] = 0.2 * torch.randn(shape) + (len(shape) == 1)
        extra[f"model.layers.{LAYERS + k}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        extra[f"model.layers.{LAYERS + k}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file({**tensors, **extra}, folder / "model.safetensors")
    return folder, backbone, blocks, extra


@torch.no_grad()
def slow_drafts(backbone, blocks, tensors, text):
    """The guesses behind a text, module by module, each over the whole text without a cache."""

    def norm(x, scale):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + backbone.config.rms_norm_eps) * scale

    n, tokens = len(text), list(text)
    hidden = backbone.model(torch.tensor([text])).last_hidden_state[:, : n - 1]
    places = torch.arange(n - 1)[None]
    rotary = blocks.model.rotary_emb(hidden, places)
    mask = torch.full((n - 1, n - 1), -torch.inf).triu(1)[None, None]
    for k in range(1, MODULES + 1):
        own = {name.split(".", 3)[3]: x for name, x in tensors.items() if f".layers.{LAYERS + k - 1}." in name}
        embedded = backbone.model.embed_tokens(torch.tensor([tokens[k : k + n - 1]]))
        both = torch.cat([norm(embedded, own["enorm.weight"]), norm(hidden, own["hnorm.weight"])], dim=-1)
        block = blocks.model.layers[k - 1]
        hidden = block(both @ own["eh_proj.weight"].T, attention_mask=mask, position_embeddings=rotary)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        tokens.append(int(backbone.lm_head(norm(hidden[0, -1], own["shared_head.norm.weight"])).argmax()))
    return tokens[n:]


def test_the_modules_of_a_checkpoint_draft_what_a_slow_loop_in_torch_drafts(deepseek):
    folder, backbone, blocks, tensors = deepseek
    model = jaxinfer.load(str(folder))
    method, model = MTP(1 + MODULES), model.attach(heads=mtp.load(folder, model))
    prompts = [np.random.default_rng(n).integers(0, 97, n).tolist() for n in (2, 3, 9, 30)]
    cold, zeros = Sampling(temperature=0.0), [0] * len(prompts)
    method.check(model, Dense())
    limits = [60] * len(prompts)
    generation = Generation.begin(model.placed, prompts, limits, method, Dense(), cold, zeros, (), logprobs=False)
    context = Context(model.placed.params, generation.extras, model.network)
    propose = jax.jit(lambda state: method.propose(context, state))
    for _ in range(3):
        draft = propose(generation.state)
        assert draft.size.tolist() == [3] * len(prompts)
        for row, (prompt, new) in enumerate(zip(prompts, generation.rows(), strict=True)):
            expected = slow_drafts(backbone, blocks, tensors, [*prompt, *new])
            assert np.asarray(draft.tokens)[row, 1:].tolist() == expected
        generation.advance(2)


@pytest.fixture(scope="module")
def counting():
    """A model that counts, and three modules that count too: module k says what comes behind the k-th token."""
    cfg = ModelConfig(
        "llama", V, V, V, 2, 1, 16, (Segment((LayerKind(),), 1),), max_positions=256, tie_embeddings=False
    )
    model = Model.random(cfg)
    params = jax.tree.map(jnp.zeros_like, model.params)
    params["embed"]["embedding"], params["final_norm"]["scale"] = jnp.eye(V), jnp.ones(V)
    params["head"]["kernel"] = jnp.roll(jnp.eye(V), 1, axis=0)
    model = Model(cfg, params, name="counting")
    modules = jax.tree.map(jnp.zeros_like, mtp.random(model, count=3))
    ones = {"embed_norm": jnp.ones(V), "hidden_norm": jnp.ones(V), "final_norm": {"scale": jnp.ones(V)}}
    right = tuple({**one, **ones, "join": jnp.eye(V, 2 * V)} for one in modules.params)
    return model.attach(heads=dataclasses.replace(modules, params=right))


def test_modules_that_are_right_are_accepted_in_full(counting):
    prompts, limits = [[3], [4, 5], [9, 30, 17, 18], list(range(20))], [41, 41, 3, 40]
    result = counting.generate(prompts, max_new_tokens=limits, method=MTP(4))
    assert result.tokens == [
        [(prompt[-1] + i) % V for i in range(1, new + 1)] for prompt, new in zip(prompts, limits, strict=True)
    ]
    # Behind a prompt of one token there is no hidden state yet: the first step finds it.
    assert result.stats.steps == [11, 11, 1, 10]
    assert result.stats.accepted == result.stats.proposed


def test_a_ragged_batch_writes_what_greedy_writes(tiny_gemma, ragged):
    model, method = tiny_gemma.attach(heads=mtp.random(tiny_gemma, count=2)), MTP(3)
    prompts, limits = ragged((1, 2, 5, 30, 64)), [40, 3, 40, 1, 40]
    hot = Sampling(temperature=[0.0, 0.0, 0.7, 0.0, 0.0])
    plain = tiny_gemma.generate(prompts, max_new_tokens=limits, policy=Window(), sampling=hot, seed=3)
    found = model.generate(prompts, max_new_tokens=limits, policy=Window(), sampling=hot, seed=3, method=method)
    assert found.tokens == plain.tokens
    assert sum(found.stats.proposed) > sum(found.stats.steps)


def test_what_it_refuses(deepseek, counting, tiny_llama, tmp_path):
    with pytest.raises(InputError, match="width=1 must be at least 2"):
        MTP(1)
    with pytest.raises(InputError, match="width=5 needs 4 modules, and there are 3"):
        counting.generate([[1]], method=MTP(5))
    with pytest.raises(InputError, match="the modules are for counting, and this model is random"):
        tiny_llama.attach(heads=counting.extras["heads"]).generate([[1]], method=Adaptive(MTP(2)))
    with pytest.raises(InputError, match="heads=str to be Modules"):
        tiny_llama.attach(heads="folder").generate([[1]], method=MTP())
    with pytest.raises(InputError, match="it cannot go with a method that scores more"):
        counting.generate([[1]], method=jaxinfer.Fallback(Lookup(8), MTP(2)), max_new_tokens=2)
    with pytest.raises(InputError, match="its modules are for the model of that folder, and this one is random"):
        mtp.load(deepseek[0], tiny_llama)
    deepseek[1].save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds no multi-token-prediction modules"):
        mtp.load(tmp_path, tiny_llama)
