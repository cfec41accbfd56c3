"""What is stored: one SQLite file, and files named by the digest of their content.

Takes rows and bytes and gives them back after any crash. May not know a rule of runs or artifacts, or a name that a client chose.
"""
