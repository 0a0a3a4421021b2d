"""`python -m rolekd_ray` is `rolekd`."""

from rolekd_ray.cli import main

main()
