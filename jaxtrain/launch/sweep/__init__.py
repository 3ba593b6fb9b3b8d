"""Sweeps: many trainings of one experiment, each with other values, shared by any number of drivers on one folder."""
