from .arrays import Rows as Rows, writing as writing
from .contact_sheet import (
    CONTACT_SHEET as CONTACT_SHEET,
    ensure_contact_sheet as ensure_contact_sheet,
)
from .crops import (
    JPEG_QUALITY as JPEG_QUALITY,
    crop_box as crop_box,
    cut_faces as cut_faces,
    encoded as encoded,
    pixels_of as pixels_of,
    resized as resized,
)
from .feed import (
    IMAGENET_MEAN as IMAGENET_MEAN,
    IMAGENET_STD as IMAGENET_STD,
    Change as Change,
    Faces as Faces,
    epoch_order as epoch_order,
    normalise as normalise,
)
from .layouts import COLUMNS as COLUMNS, PHOTO as PHOTO, SIZE as SIZE, Annotations as Annotations
from .layouts.openforensics import (
    read_annotations as read_annotations,
    read_boxes as read_boxes,
    read_faces as read_faces,
    write_faces as write_faces,
    write_json as write_json,
)
from .photos.names import (
    find_photos as find_photos,
    name_pictures as name_pictures,
)
from .photos.reading import (
    UNREADABLE as UNREADABLE,
    Annotated as Annotated,
    Picture as Picture,
    View as View,
    annotated_sizes as annotated_sizes,
    cause_of as cause_of,
    open_photo as open_photo,
)
from .prepare import (
    CROPS as CROPS,
    MANIFEST as MANIFEST,
    WAY_OUT as WAY_OUT,
    NotPrepared as NotPrepared,
    Prepared as Prepared,
    Summary as Summary,
    hash_crops as hash_crops,
    load_prepared as load_prepared,
    prepare_data as prepare_data,
)
from .recheck import photos_that_came as photos_that_came, recheck_crops as recheck_crops
from .splits import (
    SPLITS_CSV as SPLITS_CSV,
    Opening as Opening,
    ordered as ordered,
    read_places as read_places,
    read_split as read_split,
    read_splits_csv as read_splits_csv,
    write_csv as write_csv,
)
from .store import (
    ensure_store as ensure_store,
    meta_path as meta_path,
    store_path as store_path,
    stored_rows as stored_rows,
    stores_bytes as stores_bytes,
)
