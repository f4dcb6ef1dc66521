"""The two errors of the runtime."""


class SessionError(RuntimeError):
    """A model cannot be loaded, or a provider cannot be had. The message names the reason and the fix."""


class InputError(ValueError):
    """What was given to ``Session.run`` is not what the model takes. The message names the input."""
