"""A training under supervision: started, watched, asked to save at a preemption notice, restarted.

resumable_job asks `restore` for the checkpoint; supervisor starts the training (launch says with what, training is the running
one) with an `upload` daemon beside it (watch_thread). preemption reports notices, and shutdown has the training save and end.
When it has ended, restart_policy decides whether it is started again, and outcome what the exit code is. heartbeat keeps two
machines from training the same run at once. sidecar is for `watch`: at a notice, it asks a training to save that something else
started. overview is what `status` reports. Takes a command and gives an exit code. May not decide what is uploaded or resumed
from.
"""
