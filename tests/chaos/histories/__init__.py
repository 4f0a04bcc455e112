"""Random histories of many clients at once, each judged when everything has ended."""
