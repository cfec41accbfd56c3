"""The way out: checkpoint folder → snapshot in the spool → version in the store → receipt.

Takes an output folder and uploads each complete checkpoint in the order of saving. May not import torch, transformers or wandb,
write into a checkpoint folder, or know how a training is started.
"""
