"""The benchmark, in order: poison, train, unlearn, evaluate. Plain functions: no Ray, no globals, no hidden files."""
