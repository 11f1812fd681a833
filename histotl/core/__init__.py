"""The words that all rooms share: units, frozen values, errors, registry, spec strings, provenance, progress."""
