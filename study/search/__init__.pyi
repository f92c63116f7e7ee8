from .pruner import PeerMedianPruner as PeerMedianPruner, best_until as best_until
from .sampler import new_sampler as new_sampler
from .space import hyperparameters as hyperparameters, suggest as suggest
