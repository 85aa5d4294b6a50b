"""What pyproject.toml cannot say: where the packages lie."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["memoir_fast*"]), "memoir_fast.kernels"],
    package_dir={"memoir_fast": "memoir_fast", "memoir_fast.kernels": "kernels"},
    package_data={"memoir_fast": ["py.typed", "data/*"]},
)
