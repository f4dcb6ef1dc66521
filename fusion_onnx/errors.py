"""The one exception of this project's contract; light enough to catch without importing torch."""


class FusionError(ValueError):
    """A breach of the contract: the message names the rule, the value that broke it, and the fix."""
