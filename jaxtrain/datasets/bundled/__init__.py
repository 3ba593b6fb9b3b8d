"""Example datasets that packages carry."""
