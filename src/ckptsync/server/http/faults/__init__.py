"""Faults on demand, for tests: an ASGI middleware that only `--faults` installs.

`POST /_faults` takes a list of rules, as `[{"match": {"path": "/graphql", "method": "POST"}, "skip": 2, "count": 1, "action":
{"status": 503}}]`: of the requests that match, the first two pass and the next one fails. The first rule that applies acts.
`GET /_faults` lists the rules with how often each one matched and hit; `DELETE /_faults` removes them.
"""
