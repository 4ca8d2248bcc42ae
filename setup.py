"""For tools that still call setup.py; everything it could say is in setup.cfg."""

from setuptools import setup

setup()
