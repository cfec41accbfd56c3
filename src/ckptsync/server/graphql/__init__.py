"""One GraphQL request: its text, the schema that it is checked against, and the transaction that answers it."""
