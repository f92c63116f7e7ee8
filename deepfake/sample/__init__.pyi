from deepfake.sample.dataset import draw_sample as draw_sample
from deepfake.sample.dataset import seed_of as seed_of
