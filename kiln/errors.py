"""The errors that Kiln expects. Any other exception is a bug and is never caught.

A message reads `<where>: expected <what>, got <value>. <What to do>.`
"""


class KilnError(Exception):
    """An error that a person can correct."""


class ConfigError(KilnError):
    """A wrong setting, flag or plan. It is raised before any weights are loaded."""


class AddressError(ConfigError):
    """An address that no store can have: an unknown scheme, or characters that no file has in its name.

    In a setting it is a ConfigError as any other. In an item or a list of an archive, the unit fails that it is of.
    """


class WeightsError(KilnError):
    """A damaged or unexpected checkpoint or weights file."""


class SourceError(KilnError):
    """A source that would fail again: missing, damaged or of another shape. It becomes a `failed` row of the ledger."""


class AccessError(SourceError):
    """A source that denies access: no permission, or no payer."""


class TransientError(KilnError):
    """A source or store that may work on the next try: overloaded or unreachable. The job exits non-zero."""


class StorageError(KilnError):
    """A place that cannot be written or read: full disk, no permission, missing bucket."""


class TooManyFailuresError(KilnError):
    """A shard with more failed units than `max_failed_fraction` allows."""


class AccountError(KilnError):
    """An AWS account that denies a request or cannot fulfil it."""
