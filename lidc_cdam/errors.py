"""The one kind of error that a user is meant to read."""


class LidcCdamError(Exception):
    """A failure that the user can mend, told in one sentence.

    The sentence says what failed, where, what it must be, what it was, and what to do; it spells an option as
    the command line does (``--dicom``). The command line prints it without a traceback and ends with status 1.
    """
