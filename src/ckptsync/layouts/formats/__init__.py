"""Reads one format each: is this file complete, and what does it say?

Takes an open stream or bytes and gives a value or `Malformed`. Never executes or imports what a file names, never allocates
memory by a size that a file claims, and knows no folder.
"""
