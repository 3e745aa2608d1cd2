"""The process that generates the images. Only this package needs torch."""
