"""What a script uses: the stream, its listeners, requests, operations and broadcasts."""
