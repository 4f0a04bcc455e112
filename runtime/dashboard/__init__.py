"""The dashboard: every agent, message and failure in a browser, live; one page, one file.

security.py    access: the token, the host, the origin
live_state.py  the state of the whole stream, read once for all viewers
activity.py    the last hour by the minute
events.py      the stream of events that keeps a page current
pages/         the pages; that of a signed link, decision.py, is served by runtime.asgi
charts.py      sparklines, waterfalls and the map, as geometry
filters.py     times, durations and values as text
schemas.py     the schemas of values, from the handlers' code
samples.py     a sample of a value, from its schema
trouble.py     what is wrong, worst first
listeners.py   who listens to a key, and where silence is a fault
server.py      serves the pages
"""
