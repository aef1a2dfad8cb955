"""What holds a run, so that train.py can be read without it."""
