"""What train.py is made of.

job, settings            what to train and how, from the environment
layout, storage          where objects are kept: their keys, in buckets and folders
checkpoint/              what makes files a checkpoint; which one is resumed, saving, retention
data/                    the texts, their order, batches
model, optimizer         what is trained, and how it moves
distributed, steps       the processes of a job, and what they agree on after each step
attempts, progress       what they record about themselves
runners/                 hf, nemo and meta, one for each framework
"""
