"""What `runtime init` writes."""
