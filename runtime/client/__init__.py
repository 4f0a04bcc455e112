"""The client for scripts: the stream, its listeners, requests, operations and broadcasts."""
