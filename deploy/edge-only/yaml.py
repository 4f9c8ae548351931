"""Stands where PyYAML would be: Litestar imports it and uses it only to render OpenAPI as YAML, which no node does."""


def __getattr__(name: str) -> object:
    raise ImportError(f"yaml.{name}: PyYAML is not in the edge image")
