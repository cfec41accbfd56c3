"""What each GraphQL type and mutation does, one module per noun of W&B's API, and what a resolver may use.

Takes one operation inside one transaction and gives rows. May not know HTTP.
"""
