"""Faults on demand, for tests: an ASGI middleware that only `--faults` installs.

`POST /_faults` takes a list of rules `{"match": {"path", "operation", "method"}, "skip", "count", "action"}`; the first rule that
matches a request, is past its `skip` and has hits left acts on it. `GET /_faults` lists the rules with how often each one matched
and hit; `DELETE /_faults` removes them.
"""
