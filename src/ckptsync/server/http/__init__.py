"""What comes by HTTP: paths and their handlers, who may ask, the log of requests, and faults on demand."""
