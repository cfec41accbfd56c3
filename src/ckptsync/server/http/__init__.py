"""The HTTP side: paths and their handlers, who may ask, the file stream of running clients, the request log, injected faults.

Takes requests and gives responses. May not read or write the database but through resolvers and the file stream.
"""
