"""The one exception that means "the user can mend this".

Raised wherever something given to nextscale is wrong; the message is one line: what was expected and what came. The
command line turns it into exit status 2. Any other exception is a bug in nextscale and keeps its traceback.
"""

import unicodedata

LONGEST = 600  # characters of a message; of a longer one the middle is left out
KEPT = "\u200c\u200d"  # joiners: Persian words and composed emoji hold them


class InputError(ValueError):
    """Something the user gave is wrong: a file, a size, a name, a range."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_shortened(printable(str(message))))


def _shortened(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 2]} .. {text[2 - half :]}"


def printable(text: str) -> str:
    r"""`text` on one line that any terminal and UTF-8 file takes; the rest as escapes, `\xe9` for a byte of a name."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    if letter.isprintable() or letter in KEPT or unicodedata.category(letter) == "Zs":
        return letter
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8, as `os.fsdecode` gives it
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")
