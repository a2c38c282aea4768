"""A hosted zone made with a VPC is private.

Stock moto 5.2.1 looks only at `HostedZoneConfig.PrivateZone`. On AWS (Route 53 API reference, CreateHostedZone) that
element is optional, and naming a VPC is what makes the zone private.
"""

from __future__ import annotations

from moto.route53.responses import Route53

_stock_get_bool_param = Route53._get_bool_param


def install() -> None:
    Route53._get_bool_param = get_bool_param


def get_bool_param(self, name, default=None):
    if name == "HostedZoneConfig.PrivateZone" and self._get_param("VPC.VPCId"):
        return True
    return _stock_get_bool_param(self, name, default)
