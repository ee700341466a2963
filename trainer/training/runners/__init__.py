"""The runners, one for each framework: hf, nemo, meta.

Each trains a job from its first step to its last, and can be read from top to bottom. They take the same steps in the
same order, and share no base class. prologue has what all three do before they train.
"""
