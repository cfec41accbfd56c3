"""One GraphQL request: its text is parsed and checked against the schema, and executed inside one transaction.

Takes a query with its variables and gives the answer as JSON bytes. May not know HTTP or what a resolver does.
"""
