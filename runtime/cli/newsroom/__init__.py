"""The agents of `runtime demo`: a newsroom that turns notes into a site."""

from runtime.extras import needing

# Told before anything starts, and not as the trouble of one agent's file.
with needing("runtime demo", "demo"):
    import jinja2  # noqa: F401
    import markdown_it  # noqa: F401
    import pyphen  # type: ignore[import-untyped, unused-ignore] # noqa: F401
