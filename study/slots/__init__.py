"""The exact budget: slots claimed by one worker at a time, finished exactly once.

slots     Slots: claim, report, finish, free, repair, grow
study     a study created with its slots, or joined as it is
attempts  the trials that stand for one slot, and which it needs next
lease     a claimed slot is ours: heartbeat, fencing, watchdog; who is dead and who was cut off
budget    a larger budget, a trial of one's own, the end of a study
records   what people see of a slot; best, ranked, incumbents
training  one training of a model: model, role, slot of the search, seed
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
