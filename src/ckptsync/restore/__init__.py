"""The way back: sources → fetch → verification → place.

Takes a run; gives its newest valid checkpoint, local or downloaded, placed in an output_dir (`resume`) or a folder (`download`).
May not start a training or write to the store.
"""
