"""The part of the build that pyproject.toml cannot say: the extension comes from the cffi builder in bindings/."""

from setuptools import setup

setup(cffi_modules=["bindings/ffi_build.py:ffibuilder"])
