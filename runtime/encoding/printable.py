"""Somebody else's text on one line, with nothing in it that a terminal would obey."""


def printable(text: str, most: int | None = None) -> str:
    """Return a text on one line, with whatever a terminal would obey or a reader would not see written out.

    Line ends are written out too, and so are escapes, marks that turn the direction of writing, and halves of surrogate
    pairs: a text of somebody else's can neither move the cursor nor pass itself off as another line.

    Args:
        text: anything.
        most: characters that are kept; None for all of them.
    """
    if most is not None and len(text) > most:
        text = f"{text[: most - 1]}…"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _written_out(each) for each in text)


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
