"""What keeps versions: the contract, and W&B behind it. wandb_store → wandb_catalogue → wandb_client.

Takes the files of a snapshot and gives a version; takes a version and gives verified bytes (manifest, version_files, ranges).
retrying decides for every store when to try again, client_errors what an error of W&B means. run_holder notes on the server
which machine trains or watches a run. `publish` and session choose the store: session opens a store for a few requests. May not
know the spool or an output_dir. Only `wandb_client` imports wandb, and only `retrying` imports tenacity.
"""
