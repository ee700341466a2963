"""Texts from JSON lines, in an order that all frameworks share, and made into batches.

texts      where the texts come from, and each by its number
order      which texts a process has in a step
batches    texts as tensors

A batch is a function of the data, the seed, the micro-step, the rank and the number of processes, and of nothing that
happened before: to go on from a step, nothing but the step needs to be known.
"""
