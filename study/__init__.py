"""The search: many trials on many machines, one study. Knows nothing of pixels.

Rooms: config, search, storage, slots, tracking, worker, launchers, evaluation, report,
maintenance, cli. Beside them:

signals    a clean end behind SIGINT, SIGTERM, a time-out, a lost parent
templates  the rooms' Jinja templates filled in, to HTML or Markdown
estimate   what a study will take, in time and disk
"""
