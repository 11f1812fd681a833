"""How optimiser steps are made; one file each, see :mod:`histotl.learn.optimizers.base`."""
