"""The choices of platforms: each is taken where it says, and no other code asks for the platform."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer
from jaxinfer.cache.codes import Codes
from jaxinfer.cache.quantized import encode
from jaxinfer.cache.store import Store, as_stored, write
from jaxinfer.network.transformer import likeliest_token, likeliest_tokens
from jaxinfer.sharding import choices, layouts

pytestmark = pytest.mark.quick

PACKAGE = Path(jaxinfer.__file__).parent


@pytest.fixture
def on(monkeypatch):
    """Programs are traced for this platform."""

    def choose(platform):
        monkeypatch.setattr(layouts, "device", lambda: SimpleNamespace(platform=platform))

    return choose


def test_choices_name_platforms_that_there_are_and_themselves_once():
    names = [choice.name for choice in choices.CHOICES]
    assert len(set(names)) == len(names)
    assert {*choices.CHOICES} == {x for x in vars(choices).values() if isinstance(x, choices.Choice)}
    for choice in choices.CHOICES:
        assert choice.why
        assert {*choice.platforms} < {*choices.PLATFORMS}


@pytest.mark.parametrize("platform", choices.PLATFORMS)
def test_a_choice_is_taken_where_it_says(on, platform):
    on(platform)
    for choice in choices.CHOICES:
        assert choice.here() == (platform in choice.platforms)


@pytest.mark.parametrize(("platform", "stored"), [("cpu", "uint16"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_numbers_of_16_bits_are_stored_as_the_platform_reads_them(on, platform, stored):
    on(platform)
    assert as_stored(jnp.ones(4, jnp.bfloat16)).dtype == stored
    assert as_stored(jnp.ones(4)).dtype == jnp.float32


@pytest.mark.parametrize(("platform", "stored"), [("cpu", "uint8"), ("tpu", "float8_e4m3fn")])
def test_floats_of_8_bits_are_stored_as_the_platform_reads_them(on, platform, stored):
    on(platform)
    assert encode(jnp.ones((2, 4)), "fp8").codes.dtype == stored


@pytest.mark.parametrize("platform", choices.PLATFORMS)
def test_the_largest_is_the_same_however_it_is_looked_for(on, platform):
    on(platform)
    logits = np.random.default_rng(0).normal(size=(3, 4096)).astype(np.float32)
    by_blocks = "reduce_max" in str(
        jax.make_jaxpr(lambda x: likeliest_token(x))(logits)
    )  # another function: nothing traced before
    assert by_blocks == (platform == "cpu")
    np.testing.assert_array_equal(likeliest_token(logits), logits.argmax(axis=1))
    np.testing.assert_array_equal(likeliest_tokens(logits, 3)[1], np.argsort(-logits, axis=1)[:, :3])


def test_no_other_room_asks_for_the_platform():
    asking = re.compile(r"platform\(\)|default_backend\(\)|\.platform\b")
    found = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if asking.search(path.read_text())}
    # kernels: which one runs; analysis and experiment: what is measured, and what it ran on
    assert found <= {"sharding", "kernels", "analysis", "experiment"}


@pytest.mark.parametrize("pages", [None, [[2, 0], [3, 3]]])
@pytest.mark.parametrize("take", [None, [[1, 0, 2], [0, 2, 1]]])
def test_a_store_is_written_alike_on_every_platform(on, take, pages):
    rng = np.random.default_rng(0)
    blocks = (2, 8) if pages is None else (4, 4)  # rows of 8 slots, or a pool of 4 blocks of 4
    keys = jnp.asarray(rng.normal(size=(3, blocks[0], 2, blocks[1], 5)), jnp.float32)
    codes = Codes(jnp.zeros(keys.shape, jnp.int8), keys[..., 0])
    store = Store(keys, codes, jnp.full((2, 8), -1, jnp.int32), None if pages is None else jnp.array(pages))
    new = jnp.asarray(rng.normal(size=(3, 2, 2, 3, 5)), jnp.float32)
    fresh = new, Codes(jnp.asarray(rng.integers(-9, 9, new.shape), jnp.int8), new[..., 0])
    slot = jnp.array([[6, 7, 8], [0, 3, 8]])  # 8 is outside: such a token is dropped
    found = {}
    for platform in ("cpu", "tpu"):
        on(platform)
        found[platform] = write(store, fresh, None if take is None else jnp.array(take), slot + 40, slot)
    jax.tree.map(np.testing.assert_array_equal, found["cpu"], found["tpu"])
    at = (0, 0, 1, 6) if pages is None else (0, 0, 1, 2)  # slot 6 of row 0 is slot 2 of its second block, which is 0
    assert (found["tpu"].k[at] == new[0, 0, 1, 0 if take is None else 1]).all()
