"""What is kept: one SQLite file, and files named by the digest of their content. Knows no rule of runs or artifacts."""
