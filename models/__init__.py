"""Reference networks: fusions at work on real data that ships inside scikit-learn. In the checkout only, never shipped.

Each module is one data set seen through several views, and gives the same functions:

    load()              the split: `.train` and `.test`, each `.views` (a tuple of float32 arrays) and `.labels`
    views(raw)          the preprocessing, in numpy: raw samples to the tuple of views that the network takes
    build(strategy)     the network, untrained; the strategy's options are keywords
    train(strategy)     the network, trained and in eval mode; the same seed gives the same weights
    example_inputs()    a small batch of held-out samples, as tensors, one for each view
    predict(net, views) the logits in PyTorch, as an array
    accuracy(...)       the share of samples whose largest logit is the right one

    >>> from models import digits
    >>> network, test = digits.train("median"), digits.load().test
    >>> digits.accuracy(digits.predict(network, test.views), test.labels)
"""
