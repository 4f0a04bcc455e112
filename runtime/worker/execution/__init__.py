"""The user's side of a worker: handlers, middleware and lifespans."""
