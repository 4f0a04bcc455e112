"""Foreign text made safe for a terminal, on one line."""


def printable(text: str, most: int | None = None) -> str:
    """Return a text on one line, with control and invisible characters escaped.

    Line ends, terminal escapes, marks that change the direction of writing and halves of surrogate pairs are escaped
    too: a foreign text can neither move the cursor nor look like another line.

    Args:
        text: any text.
        most: the most characters to keep; None for all.
    """
    if most is not None and len(text) > most:
        text = f"{text[: most - 1]}…"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
