"""A training under supervision: started, watched, asked to save at a preemption notice, restarted.

resumable_job finds the checkpoint, supervisor starts the training (launch, training) with watch_thread beside it, shutdown and
preemption end it, outcome gives the exit code; sidecar is the part for a training that something else started. Takes a command
and gives an exit code. May not decide what is uploaded or resumed from: `upload` and `restore` do.
"""
