"""A training under supervision: started, watched, asked to save at a preemption notice, restarted.

resumable_job asks `restore` for the checkpoint. supervisor starts the training and, in watch_thread, an `upload` daemon beside
it; launch builds the command and the environment, and the module training holds the running process. preemption reports
notices, and shutdown has the training save and end. Then restart_policy decides whether it is started again, and outcome what
the exit code is. heartbeat keeps two machines from training the same run at once. sidecar serves `watch`: at a notice, it asks
a training that ckptsync did not start to save. overview is what `status` reports.

Takes a command and gives an exit code. May not decide which checkpoint is uploaded or resumed.
"""
