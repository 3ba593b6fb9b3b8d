"""Bundles for ONNX Runtime: conversion in an environment of its own, int8, the loader, and KServe's manifest."""
