"""The build backend: setuptools, told where the list lies of what else an archive of the sources
holds, so that the top level is free of it."""

from setuptools.build_meta import *  # noqa: F403
from setuptools.command.egg_info import manifest_maker

manifest_maker.template = ".ci/MANIFEST.in"
