"""Photos of faces -> a trained, measured deepfake classifier. Knows nothing of a search.

Rooms: data, metrics, training, transforms, models, audit, sample. Beside them:

config           what can be set about data and training
variants         VARIANTS: what tells the classifiers apart, one entry each
errors           what a user can mend, in one line
files            files written whole or not at all, hashes, disk room
parallel         work over processes that end with this one
reproducibility  seeds that do not repeat, the precision of a device
baselines        the published report's configurations and figures
export, predict  a model to keep, and what it says of pictures
timing           how fast this machine prepares and trains
"""
