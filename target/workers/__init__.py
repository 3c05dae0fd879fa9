"""More than one core: a worker process a volume, behind the portals and the management socket of one front.

    messages, channel   what the processes say to each other, and how
    settings            admin.db belongs to the front; a worker has a copy and asks for changes
    process             a worker: the whole stack (`target.stack`) with one volume, no portal and no socket of its own
    front               starts workers, gives them connections and requests, starts them again when they die
    watchdog            whether they hang, and how often they may die
    asgi, forward       the HTTP requests that are a worker's, and answers put together from several

Rules.
- The front never waits for a worker while it holds anything that another worker waits for: a worker's change of the
  settings needs SQLite's thread and nothing else.
- A worker that is gone, or says nothing, costs its own volume and nobody else's: every wait for one has an end.
- A worker lives no longer than its front.  It sees that the channel has ended, closes its volume, and ends; a thread of
  its own ends it if that takes too long.  Until then it holds the state directory's lock: no other lund comes between.
"""

import signal

END_LIMIT_S = 60.0
"""Without its front a worker closes its volume, and is gone after so long in any case: its log has everything."""
TRACE_SIGNAL = signal.SIGUSR2
"""A worker that gets it writes down where each of its threads is, whatever they do."""
