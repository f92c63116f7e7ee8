"""How people lay out pictures of faces: one module a layout, each to the faces table."""
