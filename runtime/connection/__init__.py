"""Where and how to connect: addresses, credentials, proxies and poolers."""
