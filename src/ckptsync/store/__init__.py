"""What keeps versions: the contract, and W&B behind it.

Takes a snapshot and gives a version; takes a version and gives verified bytes. May not know the spool or an output folder. Only
`wandb_store` imports wandb, and only `retrying` imports tenacity.
"""
