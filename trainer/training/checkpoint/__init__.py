"""Checkpoints: files, and the marker that makes them one.

marker         the object that makes files a checkpoint
lineage        which checkpoints of a run count, and in which order they are tried
checkpoints    choosing one, bringing it here, saving, and deleting what is no longer kept
"""
