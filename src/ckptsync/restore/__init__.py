"""The way back: sources → fetch → verification → placement, chosen by resume; download puts one version into any folder.

Takes a run; gives its newest valid checkpoint, local or downloaded, placed in an output_dir (`resume`) or a folder (`download`).
May not start a training or write to the store.
"""
