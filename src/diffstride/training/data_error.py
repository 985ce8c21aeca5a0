"""The error of a data set that cannot be used."""


class DataError(ValueError):
    """A data set cannot be found, read or used; the message says what to do.

    An error of a worker of a `DataLoader` is raised again with its traceback in the message, which
    is left out.

    >>> print(DataError("Caught DataError in DataLoader worker process 0.\\n…DataError: no image"))
    no image
    """

    def __init__(self, message: str) -> None:
        caught = message.startswith("Caught DataError in ")
        super().__init__(message.rpartition("DataError: ")[2].strip() if caught else message)
