"""The way back: sources → fetch → verification → placement.

resume lists the checkpoints of a run, here and in the store, newest first (sources), and has the first valid one placed: its
bytes downloaded (fetch), verified, and renamed into its place in the output_dir (placement). download writes any one version into
any other folder. May not start a training (`job` does) or write to the store.
"""
