"""What GMIC, 3D-GMIC and GLAM cost at the published sizes, against networks that look at every pixel."""
