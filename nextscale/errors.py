"""The one exception that means "the user can mend this".

Raised wherever something given to nextscale is wrong; the message is one line: what was expected and what came. The
command line turns it into exit status 2. Any other exception is a bug in nextscale and keeps its traceback.
"""


class InputError(ValueError):
    """Something the user gave is wrong: a file, a size, a name, a range."""
