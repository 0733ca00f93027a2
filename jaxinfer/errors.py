"""The one exception for bad input: a single clear line, which the commands print and turn into exit code 2."""


class InputError(ValueError):
    """An error in something that the caller gave.

    The message is one line. It names the file, key or value at fault and says what would be right.
    """


def shown(value, most: int = 60) -> str:
    """Show a bad value in an error line: its repr in printable characters, cut in its middle beyond `most` of them."""
    try:
        return shown_text(repr(value), most)
    except Exception:  # whatever the object does when it is asked
        return f"a {type(value).__name__}"


def shown_text(text: str, most: int = 200) -> str:
    """Show a name in an error line: printable characters, cut in its middle beyond `most` of them."""
    if len(text) > most:
        half = (most - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def nearest(word: str, choices) -> str:
    """Return `"; nearest: 'x'"` for the closest of `choices` to `word`, or an empty string if none is close."""
    import difflib

    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; nearest: {found[0]!r}" if found else ""
