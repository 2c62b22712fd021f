"""The errors Kiln expects. Anything else is a bug and is never caught."""


class KilnError(Exception):
    """Something a person can mend: the message says what, where and what to do."""


class ConfigError(KilnError):
    """A wrong setting, flag or plan; raised before any weight is loaded."""


class WeightsError(KilnError):
    """A checkpoint or weights file that is not what it should be."""


class SourceError(KilnError):
    """A source that would fail again (corrupt, missing, of another shape): a `failed` row of the ledger."""


class AccessError(SourceError):
    """A source that refuses to be read: no rights, or nobody who pays."""


class TransientError(KilnError):
    """A source or store that may work on the next try (throttled, vanished host): the job exits non-zero."""


class StorageError(KilnError):
    """A place that cannot be written or read: full disk, no permission, no such bucket."""


class TooManyFailuresError(KilnError):
    """More units failed than `max_failed_fraction` allows."""


class AccountError(KilnError):
    """What an AWS account refuses or cannot do, in its own words and what to do about it."""
