"""The one class of errors that a user can cause and mend."""


class EcglibError(Exception):
    """Wrong input: a file, a value or a setting.

    The message is one line: what is wrong (file or value), the rule, the repair. `ecglib` prints it
    without a traceback and exits with code 2.
    """
