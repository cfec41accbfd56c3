"""Bytes on the wire: signed links, request bodies read past the HTTP parser, files sent by the kernel.

Takes a link and gives or stores the bytes behind it, in flat memory. May not know which run or artifact they belong to.
"""
