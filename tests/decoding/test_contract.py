"""The contract of a decode method: what holds where a method says nothing, and a method around another."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest

from jaxinfer import METHODS, POLICIES, Adaptive, DecodeMethod, Dense, InputError, Lookup
from jaxinfer.decoding.methods.wrapper import MethodWrapper
from jaxinfer.host.defaults import default

pytestmark = pytest.mark.quick

SAID = {name: member for name, member in vars(DecodeMethod).items() if isinstance(member, default)}
OF_FIELDS = {"unbounded", "paths", "dynamic"}  # what a method around another says of itself alone


@dataclass(frozen=True)
class Least(DecodeMethod):
    """No more than a method has to be."""

    def propose(self, ctx, state): ...

    def verify(self, ctx, state, draft, output, logits): ...


@dataclass(frozen=True)
class Around(MethodWrapper):
    method: DecodeMethod

    propose, verify = Least.propose, Least.verify


def test_what_holds_where_a_method_says_nothing():
    found = {name: (getattr(Least, name), getattr(Least(), name)) for name in SAID}
    expected = dict.fromkeys(SAID, None) | {"width": 1, "rows_per_prompt": 1, "lossless": True}
    expected |= dict.fromkeys(("samples", "reads_prompt", "reads_layers", "holds_back", "can_rest"), False)
    expected |= {"needs": (), "unbounded": ()}
    assert found == {name: (value, value) for name, value in expected.items()}
    assert (Least().init(None, None), Least().hold(None, None), Least().figures(None)) == (None, None, {})
    assert all(member.__doc__ for member in SAID.values())


def test_a_method_says_it_as_an_attribute_a_field_or_a_property():
    @dataclass(frozen=True)
    class Other(Least):
        beams: int
        width: int  # though the base has a value, it is a field of its own
        needs: ClassVar[tuple[str, ...]] = ("heads",)

        @property
        def rows_per_prompt(self):
            return self.beams

    other = Other(3, 5)
    assert (other.width, other.needs, other.rows_per_prompt) == (5, ("heads",), 3)
    assert other == Other(3, width=5) != Other(3, 4)


@pytest.mark.parametrize("name", sorted(SAID))
def test_a_method_around_another_says_what_that_one_does(name):
    said = object()
    inner = Least()
    object.__setattr__(inner, name, said)
    found = getattr(Around(inner), name)
    if name in OF_FIELDS:
        assert found == getattr(DecodeMethod, name)
    elif name in ("forward", "hypotheses"):  # with the state of the one within
        object.__setattr__(inner, name, lambda *given: given)
        outer, state = getattr(Around(inner), name), dataclasses.make_dataclass("State", ["aux"])
        whole = state(SimpleNamespace(aux=7))
        assert (outer(whole) if name == "hypotheses" else outer(1, whole, 2)[1:2]) == (state(7),)
    else:
        assert found is said


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_says_nothing_but_what_the_contract_has(method):
    """A public name that is no field, no helper with arguments, and not of the contract would be read by nobody."""
    fields = {field.name for field in dataclasses.fields(method)}
    own = {name for name, value in vars(method).items() if not name.startswith("_") and not callable(value)}
    assert own - fields - set(SAID) <= {"earned", "depth", "kinds"}  # properties for the method itself


def test_what_only_looks_like_a_method_is_refused(tiny_llama):
    members = {name: getattr(Lookup(), name) for name in ("width", "samples", "needs", "init", "propose", "verify")}
    alike = dataclasses.make_dataclass("Alike", [(name, object, value) for name, value in members.items()], frozen=True)
    plain = type("Plain", (DecodeMethod,), {"propose": Least.propose, "verify": Least.verify})
    for wrong in (alike(), Lookup, "lookup", plain()):
        with pytest.raises(InputError, match=r"must be a decode method.* extends jaxinfer\.DecodeMethod") as caught:
            tiny_llama.generate([[1]], method=wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"method=.* must be a DecodeMethod, such as Lookup\(\)"):
        Adaptive(alike())
    with pytest.raises(TypeError, match=r"abstract.* '?verify"):
        dataclass(frozen=True)(type("Half", (DecodeMethod,), {"propose": Least.propose}))()


def test_a_registry_takes_what_extends_the_contract_and_nothing_else():
    @dataclass(frozen=True)
    class Bare(Least):
        beams: int

    half = dataclass(frozen=True)(type("Half", (DecodeMethod,), {"propose": Least.propose}))
    extends = r"must be a frozen dataclass that extends jaxinfer\."
    for registry, wrong, message in [
        (METHODS, Dense, rf"decode method 'other': <class .*Dense'> {extends}DecodeMethod"),
        (POLICIES, Lookup, rf"cache policy 'other': <class .*Lookup'> {extends}CachePolicy"),
        (METHODS, Lookup(), f"{extends}DecodeMethod"),
        (METHODS, type("Alike", (Lookup,), {}), f"{extends}DecodeMethod"),
        (METHODS, dataclass(type("Thawed", (DecodeMethod,), {})), f"{extends}DecodeMethod"),
        (METHODS, half, r"Half'> must have verify: see jaxinfer\.DecodeMethod"),
        (METHODS, Bare, r"Bare'> must have a default for beams"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            registry.add("other", wrong)
        assert "\n" not in str(caught.value)
        assert "other" not in registry
    METHODS.add("other", Least)
    assert METHODS["other"] is Least
    METHODS.remove("other")
