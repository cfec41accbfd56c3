"""The way back: sources → fetch → verification → placement, in the hands of resume.

sources lists the checkpoints of a run, here and in the store, newest first. resume has the first valid one placed: fetched,
verified, and renamed into its place in the output_dir. download, which `pull` uses, writes any one version into any other
folder. May not start a training (`job` does) or write to the store.
"""
