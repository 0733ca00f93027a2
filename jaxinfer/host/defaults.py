"""Members of a base class that have a value until a subclass gives them another."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    default = property  # read-only, so that a class attribute, a field, a property or a method may take its place
else:

    class default:
        """A member that reads as what its body returns, of the class and of an instance.

        A property would do for an instance, but a dataclass takes the value of a base class for the default of a field
        of the same name, and a property is no width.
        """

        def __init__(self, body):
            self.value, self.__doc__ = body(None), body.__doc__

        def __get__(self, instance, owner=None):
            return self.value
