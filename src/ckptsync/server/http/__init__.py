"""The HTTP side: routes and endpoints, authorization, the file stream of running clients, the request log, injected faults.

Takes requests and returns responses. Accesses the database only through resolvers and the file stream.
"""
