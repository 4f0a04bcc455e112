"""The pages, one a file: the queries and the template of each."""
