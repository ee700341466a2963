"""What train.py is made of.

job, settings            what to train and how, from the environment
layout                   where things are kept
storage, checkpoint      keeping them: files and buckets, and what makes files a checkpoint
data, model, optimizer   what is trained, on what, and how it moves
distributed, steps       the processes of a job, and what they agree on after each step
attempts, progress       what they tell about themselves
runners                  hf, nemo and meta, one for each framework
"""
