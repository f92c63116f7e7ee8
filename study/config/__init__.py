"""What can be set about a study: checked once, whole, with one line for each mistake.

schema       every key of the YAML, its unit and range; the kinds of study
siblings     the studies beside a search: its finalists, a leak's two arms
load         the YAML and --set, read and checked
fingerprint  what must not change while a study lives, and what differs if it did
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
