"""What keeps versions: the contract, and W&B behind it. wandb_store → wandb_catalogue → wandb_client.

Takes a snapshot and gives a version; takes a version and gives verified bytes. May not know the spool or an output_dir. Only
`wandb_client` imports wandb, and only `retrying` imports tenacity.
"""
