"""The one exception for bad input: a single clear line, which the commands print and turn into exit code 2."""


class InputError(ValueError):
    """Something the caller gave is wrong.

    The message is one line. It names the file, key or value at fault and says what would be right.
    """


def nearest(word: str, choices) -> str:
    """`"; nearest: 'x'"` for the closest of `choices` to `word`, or an empty string if none is close."""
    import difflib

    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; nearest: {found[0]!r}" if found else ""
