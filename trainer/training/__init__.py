"""What train.py is made of.

job, settings            what to train and how, from the environment
layout                   where things are kept
storage, checkpoint      keeping them: files and buckets, and what makes files a checkpoint
data, model              what is read
distributed, progress    the processes of a job, and what they tell about themselves
hf                       the runner for framework=hf
"""
