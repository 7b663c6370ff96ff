from setuptools import find_packages, setup

# The top-level folder configs/ is installed as package data of lit_mmpg.configs, which only code can say.
setup(
    packages=[*find_packages(include=["lit_mmpg*", "profiling*"]), "lit_mmpg.configs"],
    package_dir={"lit_mmpg.configs": "configs"},
    package_data={"lit_mmpg.configs": ["**/*"], "lit_mmpg": ["py.typed"]},
)
