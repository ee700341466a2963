"""Texts from JSON lines, the order that all frameworks share, and batches.

listing    which objects a data set is, and that they stay so
texts      where the texts come from, and each by its number
order      which texts a process has in a micro-step
batches    texts as tensors
lengths    how much of the texts is cut off

A batch depends on the data, the seed, the micro-step, the rank and the number of processes alone. To resume a step,
nothing but its number needs to be known.
"""
