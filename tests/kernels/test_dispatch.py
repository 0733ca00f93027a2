"""Which formulation runs: the table, forced choices, fallbacks and what they say."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LAYER, Case

import jaxinfer
from jaxinfer import InputError
from jaxinfer.cache.codes import dequantize
from jaxinfer.cache.store import Store, extent
from jaxinfer.kernels import dispatch
from jaxinfer.kernels.attention import attend
from jaxinfer.kernels.contract import PLAIN


def call(
    platform="tpu",
    generation="",
    dtype="bfloat16",
    stored="bfloat16",
    width=128,
    group=4,
    slots=1024,
    latent=False,
    page=None,
):
    return dispatch.Call(platform, generation, dtype, stored, width, group, slots, latent, page)


@pytest.mark.parametrize(
    ("given", "module"),
    [
        (call(), "tpu"),
        (call(dtype="float32", stored="float32"), "tpu"),
        (call(stored="int8", width=256), "tpu"),
        (call(page=256), "tpu"),
        (call("cpu", page=16), "xla"),
        (call("gpu", "9.0"), "xla"),  # until a device has proved it, only where it is forced
        (call("cpu", dtype="float32", stored="float32"), "xla"),
        (call("cpu", width=7), "xla"),
        (call("gpu", "8.0"), "xla"),  # no wgmma: a matter of the machine, not of the model
    ],
)
def test_the_table_chooses_without_a_word(given, module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.choose(given).module == module


@pytest.mark.parametrize(
    ("given", "name", "reason"),
    [
        (call(), "pallas", None),
        (call("cpu"), "xla", None),
        (call("gpu", "9.0"), "xla", "pallas runs only where it is asked for"),
        (call("gpu", "10.0"), "xla", "it is for compute capability 9.0, not 10.0"),
        (call(width=80), "xla", "it takes heads of width 64, 96, 128, 256, not of 80"),
    ],
)
def test_what_is_chosen_is_noted_with_what_was_passed_over(given, name, reason):
    with warnings.catch_warnings(), dispatch.recorded() as found:
        warnings.simplefilter("ignore")
        dispatch.choose(given)
        dispatch.choose(given)
    assert len(found) == 2
    assert (found[0].of, found[0].name) == ("attention", name)
    assert found[1].reason is None if reason is None else reason in found[1].reason
    dispatch.choose(call("cpu"))
    assert len(found) == 2


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (call(width=80), "heads of width 64, 96, 128, 256, not of 80"),
        (call(dtype="float16", stored="float16"), "computes in bfloat16 or float32, not in float16"),
        (call(stored="Packed"), "reads keys in bfloat16, float32, int8, float8_e4m3fn, not in Packed"),
        (call(latent=True), "latent attention"),
        (call(slots=100), "a multiple of 128 slots, not 100"),
        (call(page=64), "blocks of a multiple of 128 tokens, not of 64"),
    ],
)
def test_what_a_kernel_does_not_take_falls_back_and_says_why_once(given, reason, monkeypatch):
    monkeypatch.setattr(dispatch, "_WARNED", set())
    with pytest.warns(RuntimeWarning, match="falls back to plain XLA") as caught:
        assert dispatch.choose(given).module == "xla"
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.choose(given).module == "xla"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (call("gpu", "9.0"), None),
        (call("gpu", "9.0", "float16", "float8_e4m3fn", width=64), None),
        (call("gpu", "9.0", "float32", "float32"), "computes in bfloat16 or float16, not in float32"),
        (call("gpu", "9.0", "float16", "bfloat16"), "the dtype of its queries, float16, not bfloat16"),
        (call("gpu", "9.0", page=64), None),
        (call("gpu", "9.0", page=32), "blocks of a multiple of 64 tokens, not of 32"),
        (call("gpu", "9.0", group=71), "at most 64 query heads to a key/value head, not 71"),
    ],
)
def test_what_the_kernel_for_hopper_takes_where_it_is_forced(given, reason):
    with dispatch.use("pallas"):
        if reason is None:
            assert dispatch.choose(given).module == "gpu"
        else:
            with pytest.raises(InputError, match=reason):
                dispatch.choose(given)


def test_a_forced_choice_that_cannot_run_says_what_would():
    with dispatch.use("pallas"):
        with pytest.raises(InputError, match=r"for gpu, not for cpu. What would: 'xla', 'reference'"):
            dispatch.choose(call("cpu"))
        with pytest.raises(InputError, match=r"not of 80. What would: 'xla', 'reference'"):
            dispatch.choose(call(width=80))
        with pytest.raises(InputError, match=r"compute capability 9.0, not 8.0. What would: 'xla', 'reference'"):
            dispatch.choose(call("gpu", "8.0"))
        assert dispatch.choose(call()).module == "tpu"


def test_names_are_checked():
    with pytest.raises(InputError, match=r"no attention 'palas': there is pallas, reference, xla; nearest: 'pallas'"):
        dispatch.use("palas").__enter__()
    with pytest.raises(InputError, match="target is 'tpu' or 'gpu'"):
        dispatch.use("pallas", target="npu").__enter__()


def layer(case, dtype=jnp.float32, scoring=PLAIN, decode=lambda x, dtype: x.astype(dtype), pages=None):
    store = Store(case.k, case.v, case.kv_pos, pages)
    k = v = jnp.ones((case.q.shape[0], case.q.shape[1], case.tokens, case.q.shape[3]), dtype)
    read = case.q_pos, extent(store), case.visible, decode, scoring
    return attend(case.q.astype(dtype), k, v, None, store, jnp.int32(LAYER), *read)


def test_a_choice_holds_for_what_is_traced_inside(monkeypatch):
    case = Case((4, 2), 8, 2, (0, 5), slots=128)
    ran = []
    real = dispatch.module
    monkeypatch.setattr(dispatch, "module", lambda row: ran.append(row.name) or real(row))
    plain = layer(case)
    with jaxinfer.kernels.use("reference"):
        defined = layer(case)
    layer(case)
    assert ran == ["xla", "reference", "xla"]
    np.testing.assert_allclose(plain, defined, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("page", "stored"), [(128, None), (16, "int8")])
def test_a_store_of_pages_is_read_by_every_formulation(page, stored):
    """Pools whose blocks lie anywhere hold what a store of the rows' own slots holds, and give what that gives."""
    case = Case((4, 2), 64, 3, (5, 140, 384), slots=384, window=350, stored=stored)
    options = {"decode": dequantize} if stored else {}
    with dispatch.use("reference"):
        expected = layer(case, **options)
    blocks = 3 * 384 // page
    table = np.random.default_rng(0).permutation(blocks).reshape(3, -1)

    def pooled(x):
        parts = x.reshape(*x.shape[:3], -1, page, *x.shape[4:])
        pool = np.zeros((x.shape[0], blocks, x.shape[2], page, *x.shape[4:]), x.dtype)
        for row, column in np.ndindex(*table.shape):
            pool[:, table[row, column]] = parts[:, row, :, column]
        return jnp.asarray(pool)

    case.k, case.v = jax.tree.map(pooled, (case.k, case.v))
    options["pages"] = jnp.asarray(table, jnp.int32)
    found = [layer(case, **options)]
    with dispatch.use("reference"):
        found.append(layer(case, **options))
    with dispatch.use("pallas", target="tpu", interpret=True):
        if page == 128:
            found.append(layer(case, **options))
        else:
            with pytest.raises(InputError, match="blocks of a multiple of 128 tokens, not of 16"):
                layer(case, **options)
    for one in found:
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


def test_a_cache_that_only_its_policy_can_read():
    """Its format has no kernel: on a TPU it would fall back, and when forced it is an error."""
    case = Case((4, 2), 64, 2, (0, 5), slots=128)
    case.k, case.v = ({"halves": x / 2} for x in (case.k, case.v))
    with dispatch.use("pallas", target="tpu", interpret=True), pytest.raises(InputError, match="not in dict"):
        layer(case, decode=lambda x, dtype: x["halves"].astype(dtype) * 2)


def test_programs_of_different_choices_are_different(tiny_llama):
    tiny_llama.logits([[1, 2, 3]])
    model = tiny_llama
    found = model.generate([[5, 6, 7]], max_new_tokens=4)
    with jaxinfer.kernels.use("reference"):
        again = model.generate([[5, 6, 7]], max_new_tokens=4)
    assert found.tokens == again.tokens
    from jaxinfer.runtime import compiled

    choices = {key[-1] for key in compiled._PROGRAMS}
    assert {None, dispatch.Choice("reference")} <= choices
