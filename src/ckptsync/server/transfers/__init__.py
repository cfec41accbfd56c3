"""The bytes on the wire: signed links, request bodies past the parser, files past the interpreter."""
