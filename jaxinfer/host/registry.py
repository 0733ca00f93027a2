"""Names of what can be chosen, such as methods and weight formats: known ones, and those that a user's file adds."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from jaxinfer.errors import InputError, nearest, shown

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to things of one kind, to which more can be added and nothing can be changed.

    kind: what they are, in the words of an error, such as "decode method". fault: what keeps a thing from being added,
    in words that go on after it; "" if nothing does. added: what was added to any registry, in order.
    """

    added: ClassVar[list[tuple["Registry[Any]", str]]] = []

    def __init__(self, kind: str, known: Mapping[str, T], fault: Callable[[Any], str] = lambda thing: "") -> None:
        self.kind, self._fault = kind, fault
        self._known = dict(known)

    def __getitem__(self, name: str) -> T:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    __eq__, __hash__ = object.__eq__, object.__hash__

    def add(self, name: str, thing: T) -> None:
        """Register a thing under a name. Raises InputError for a name that is taken or no name, or a faulty thing."""
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise InputError(f"{self.kind} {shown(name)}: a name has letters, digits, - and _")
        if name in self._known:
            raise InputError(f"{self.kind} {name!r} is registered already")
        if fault := self._fault(thing):
            raise InputError(f"{self.kind} {name!r}: {shown(thing)} {fault}")
        self._known[name] = thing
        Registry.added.append((self, name))

    def remove(self, name: str) -> None:
        """Forget a name that was added, such as that of a file that could not be loaded as a whole."""
        Registry.added.remove((self, name))
        del self._known[name]

    def find(self, name: object, where: str) -> T:
        """Find the thing of a name. Raises InputError, which says `where` it stood and lists all, the nearest last."""
        if isinstance(name, str) and name in self._known:
            return self._known[name]
        hint = nearest(name, self._known) if isinstance(name, str) else ""
        raise InputError(f"{where}: {shown(name)} must be one of {', '.join(self._known)}{hint}")


def by_file(names: Mapping[str, Any], base: type) -> dict[str, Any]:
    """Pick the classes that extend a base, such as those that a module has imported: each by the name of its file."""
    classes = [thing for thing in names.values() if isinstance(thing, type) and issubclass(thing, base)]
    return {cls.__module__.rpartition(".")[2]: cls for cls in classes if cls is not base}


def extends(base: type) -> Callable[[Any], str]:
    """Make the `fault` of a registry of frozen dataclasses that extend an abstract base, and can be made of nothing."""

    def fault(thing: Any) -> str:
        is_class = isinstance(thing, type) and issubclass(thing, base) and dataclasses.is_dataclass(thing)
        if not is_class or "__dataclass_params__" not in vars(thing) or not thing.__dataclass_params__.frozen:
            return f"must be a frozen dataclass that extends jaxinfer.{base.__name__}"
        if missing := sorted(thing.__abstractmethods__):
            return f"must have {', '.join(missing)}: see jaxinfer.{base.__name__}"
        neither = dataclasses.MISSING, dataclasses.MISSING
        bare = [x.name for x in dataclasses.fields(thing) if x.init and (x.default, x.default_factory) == neither]
        return f"must have a default for {', '.join(bare)}" if bare else ""

    return fault
