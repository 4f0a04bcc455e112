"""A stream as a server of the Model Context Protocol: handlers are tools, keys and patterns are resources."""
