"""Storage: one SQLite file, and content files named by their digest.

Keeps rows and bytes through any crash. Knows no rules of runs or artifacts, and never uses a name that a client chose as a file
name.
"""
