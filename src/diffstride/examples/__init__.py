"""The main job: networks that learn their strides on real images, driven by Gin."""
