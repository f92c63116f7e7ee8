from .dataset import draw_sample as draw_sample, seed_of as seed_of
