"""The one exception that means "the user can fix this": the command line prints its sentence and exits with 2."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the argument, its value and the remedy."""
