"""Text from elsewhere, made safe to print."""

# Control characters, with which text could move the cursor or talk to the terminal, and those that change the
# direction of the text around them (Boucher and Anderson 2021, "Trojan Source").
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SPELLED = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    r"""The text with control characters spelled out, such as \x1b; newlines, tabs and all other characters stay."""
    return text.translate(_SPELLED)
