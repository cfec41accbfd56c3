"""A training under supervision: started, watched, asked to save at a preemption notice, restarted.

Takes a command and gives an exit code. May not decide what is uploaded or resumed from: `upload` and `restore` do.
"""
