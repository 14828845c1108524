"""The logs of the code that was published with arXiv 2402.14015, as tables of ours: what its files' names and contents say."""
