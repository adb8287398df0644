"""The exceptions that the command line turns into one line and exit code 2."""


class UserError(Exception):
    """A mistake in what the user gave: a configuration, a folder, a file. The message is one line that says
    what is wrong and what to do about it."""


class AbsentDataError(UserError):
    """A folder of data lacks one data set. Where nobody asked for that one by name, the others can do without it."""
