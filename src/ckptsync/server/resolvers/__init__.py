"""The resolvers of the GraphQL fields and mutations, one module per noun of W&B's API, and what they share.

A resolver works inside one transaction and returns rows. It knows nothing of HTTP.
"""
