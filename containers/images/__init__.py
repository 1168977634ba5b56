"""Building the container images: an engine where none runs, a base where no registry is reached, the three builds."""
