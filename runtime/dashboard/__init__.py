"""The dashboard: every agent, message and failure in a browser, live; one page, one file.

guard.py     who may ask: the token, the host, the origin
pulse.py     what is known of the whole stream, asked for once for all who look
hours.py     the last hour by the minute
events.py    the stream of events that keeps a page up to date
pages/       the pages
charts.py    sparklines, waterfalls and the map, as geometry
shown.py     times, durations and values as text
schemas.py   what the handlers' code says a value must be
server.py    serves all this
"""
