"""The way out: checkpoint folder → snapshot in the spool → version in the store → receipt.

daemon scans the output folder, woken by watcher when something happens in it, and held_folder notices if the folder is moved,
deleted or replaced. A checkpoint that stayed unchanged for the quiet_period is handed to pinner. pinner has it validated, asks
restart_detection (its rules: lineage) whether the training goes on or has restarted from scratch, and links it into the spool
as a snapshot. uploader takes the snapshots in the order of upload_queue; version_upload makes each a version in a child process
(child, which runs `ckptsync.publish`) and writes its receipt. Then retention deletes from the store every version that no rule
keeps. May not import torch, transformers or wandb, write into a checkpoint folder, or know how a training is started.
"""
