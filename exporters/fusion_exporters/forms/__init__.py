"""Which form of a fusion is written: the cost rule, the file of `tune`, and the choice between them."""
