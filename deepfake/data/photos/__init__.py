"""A photo as it was annotated: every photo is found and read here, whatever it is read for.

names    which file is the photo of a file_name
reading  its pixels in RGB of 8 bits, turned as its boxes see them
"""
