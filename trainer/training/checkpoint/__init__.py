"""Checkpoints: files, and the marker that makes them one.

marker         the object that names the files of a checkpoint, and is written after them
snapshot       the files and markers of a run at one moment
lineage        which checkpoints of a run count, and in which order they are tried
resume         which checkpoint a submission resumes, and downloading its files
saving         uploading files, and writing their marker
retention      what is deleted when a checkpoint has been saved, and in which order
checkpoints    choosing, downloading and saving as the processes of a job do it together
"""
