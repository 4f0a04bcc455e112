"""How fast is it, and against whom? `python -m tests.bench` measures it beside its peers, on one PostgreSQL."""
