"""The two errors of the runtime."""


class SessionError(RuntimeError):
    """A model does not load or run, or a provider does not start. The message names the reason and the fix."""


class InputError(ValueError):
    """An input is not what the model takes. The message names it."""
