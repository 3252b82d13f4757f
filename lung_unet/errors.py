"""The one exception for what a user can put right."""


class InputError(Exception):
    """Bad input, told in one line that names the file and the remedy; commands exit 1 with it."""
