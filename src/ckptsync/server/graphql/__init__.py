"""Executes GraphQL requests: parses a query, validates it against the schema, and runs it in one transaction.

Takes a query with its variables and returns the answer as JSON. Knows neither HTTP nor what a resolver does.
"""
