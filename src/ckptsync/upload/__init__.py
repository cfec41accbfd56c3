"""The way out: checkpoint folder → snapshot in the spool → version in the store → receipt.

watcher (hints) and quiet_period find a folder, pinner has it validated (validation, restart_detection by lineage) and pins it
(snapshot, spool); uploader takes it by upload_queue and has it uploaded (version_upload through child, which runs
`ckptsync.publish`), which ends with the receipt; retention deletes what may go. daemon drives it all. May not import torch,
transformers or wandb, write into a checkpoint folder, or know how a training is started.
"""
