"""Photos and annotations -> the faces table -> crops, splits, stores.

arrays   rows of an array on disk
photos   a photo as it was annotated: its file found by name, its pixels read
check    whether boxes are what they are said to be, over the whole file
crops    each photo decoded once, each face cut to a small JPEG; resumable
splits   train / val / test, whole pictures together; who may read test
prepare  all of it in order, with a manifest of what it was made from
contact_sheet  a picture of what was cut: crops of both labels, boxes on photos
recheck  crops held against their photos; photos that came since
store    crops -> one array a resolution, shared through the page cache
feed     normalised batches of a store's faces
layouts  the faces table, and one module a layout that people have: openforensics
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
