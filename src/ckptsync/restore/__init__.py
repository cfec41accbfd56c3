"""The way back: resolve → fetch → verify → place.

Takes a run and puts its newest valid checkpoint, from this machine or from the store, into its place. May not start anything.
"""
