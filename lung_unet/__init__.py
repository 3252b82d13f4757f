"""Train, score and run 3D U-Nets for lung nodules in chest CT (LUNA16 / LIDC-IDRI), in JAX."""

__version__ = "0.1.0"
