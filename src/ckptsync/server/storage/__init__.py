"""Storage: one SQLite file, and content files named by their digest.

Keeps rows and bytes through any crash. Knows no rules of runs or artifacts, and never names a file as a client says.
"""
