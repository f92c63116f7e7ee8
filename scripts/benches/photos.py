"""Photos of full size in OpenForensics' layout, a few pictures under many names."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = 8


def draw_photos(folder: Path, photos: int) -> dict[str, list[dict[str, object]]]:
    """With detail and grain, three to four faces each; what their JSON says."""
    (folder / "Images/Train").mkdir(parents=True)
    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(PICTURES):
        coarse = Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((1024, 768), Image.Resampling.BICUBIC), np.float32)
        noisy = (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(noisy).save(content, "JPEG", quality=90)
        encoded.append(content.getvalue())
    images, annotations = [], []
    for photo in range(photos):
        name = f"Images/Train/{photo:05d}.jpg"
        # told apart by what no decoder reads, and of sizes of their own, as real ones are
        (folder / name).write_bytes(encoded[photo % PICTURES] + bytes(1 + photo // PICTURES))
        images.append({"id": photo, "file_name": name, "width": 1024, "height": 768})
        for place in range(3 + photo % 2):
            width, height = generator.uniform(80, 220, 2).round(2).tolist()
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": photo,
                    "category_id": (photo + place) % 2,
                    "bbox": [30 + 240.0 * place, 200.0, width, height],
                }
            )
    categories = [{"id": 0, "name": "Real"}, {"id": 1, "name": "Fake"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "Train_poly.json").write_text(json.dumps(document))
    return document
