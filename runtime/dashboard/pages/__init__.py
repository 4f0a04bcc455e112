"""The pages, one a file: what is asked for, and what it is shown with."""
