"""Where a caller called us: the origin and prefix that URLs in our answers must have."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from .problems import ConfigError
from .request import Request


class Origins:
    """Tells origins. Forwarded headers count only from proxies that the operator trusts."""

    def __init__(self, trusted_proxies: Sequence[str]) -> None:
        """Addresses or networks. Raises ConfigError for anything else."""
        try:
            self._trusted = [ipaddress.ip_network(proxy.strip(), strict=False) for proxy in trusted_proxies]
        except ValueError as error:
            raise ConfigError(f"--trusted-proxy: {error}; for example 10.0.0.5 or 172.16.0.0/12") from None

    def of(self, request: Request) -> str:
        """`https://host:port/prefix` as the caller of `request` used them, without a slash at the end."""
        scope, headers = request.scope, request.headers
        scheme, host, prefix = scope.get("scheme", "http"), headers.get("host", ""), scope.get("root_path", "")
        if self._trusts(request):
            scheme = _first(headers.get("x-forwarded-proto")) or scheme
            host = _first(headers.get("x-forwarded-host")) or host
            prefix = f"{(_first(headers.get('x-forwarded-prefix')) or '').rstrip('/')}{prefix}"
        if not host and scope.get("server"):
            name, port = scope["server"]
            host = f"{name}:{port}" if port else name
        return f"{scheme}://{host}{prefix}"

    def _trusts(self, request: Request) -> bool:
        client = request.scope.get("client")
        if not client or not self._trusted:
            return False
        try:
            address = ipaddress.ip_address(client[0])
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _first(value: str | None) -> str | None:
    """The first of several, which the outermost proxy wrote."""
    return value.partition(",")[0].strip() or None if value else None
