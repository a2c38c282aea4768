"""Security group rules and launch templates that Terraform can read back as it wrote them.

Stock moto 5.2.1 keeps the description of a rule whose source is a security group or a prefix list but never returns it;
mixes a launch template's own tags into its data, where they leak into the next plan; and stores the user
data of a template's later versions as a plain string, on which launching an instance then fails. It also
creates later versions from their own data alone, where AWS starts from the source version. MonitorInstances and
UnmonitorInstances are missing. It leaves behind the network interfaces that AWS makes with an instance or a NAT
gateway and removes with it, and asks for the ports of a rule for all protocols when it is changed.
"""

from __future__ import annotations

from moto.core.responses import ActionResult
from moto.ec2.models.instances import Instance
from moto.ec2.models.launch_templates import LaunchTemplate
from moto.ec2.models.nat_gateways import NatGatewayBackend
from moto.ec2.models.security_groups import SecurityGroupBackend, SecurityGroupRule
from moto.ec2.responses import EC2Response
from moto.ec2.responses.launch_templates import LaunchTemplates
from moto.ec2.utils import parse_user_data

_stock_init = LaunchTemplate.__init__
_stock_prep_nics = Instance.prep_nics
_stock_delete_nat_gateway = NatGatewayBackend.delete_nat_gateway
_stock_modify_rules = SecurityGroupBackend.modify_security_group_rules
_stock_create_version = LaunchTemplates.create_launch_template_version


def install() -> None:
    SecurityGroupRule.description = property(rule_description)
    SecurityGroupBackend.modify_security_group_rules = modify_security_group_rules
    EC2Response.monitor_instances = set_monitoring("enabled")
    EC2Response.unmonitor_instances = set_monitoring("disabled")
    Instance.prep_nics = prep_nics
    NatGatewayBackend.delete_nat_gateway = delete_nat_gateway
    LaunchTemplate.__init__ = init_template
    LaunchTemplates.create_launch_template_version = create_launch_template_version


def set_monitoring(state: str):
    def answer(self):
        instances = self.ec2_backend.get_multi_instances_by_id(self._get_param("InstanceIds", []))
        for instance in instances:
            instance.monitoring_state = state
        return ActionResult(
            {"InstanceMonitorings": [{"InstanceId": i.id, "Monitoring": {"State": state}} for i in instances]}
        )

    return answer


def modify_security_group_rules(self, group_id, rules) -> None:
    """Only protocols that have ports need them: tcp, udp and their numbers."""
    all_ports = {"FromPort": -1, "ToPort": -1}
    complete = {
        rule_id: rule if str(rule.get("IpProtocol")) in ("tcp", "udp", "6", "17") else {**all_ports, **rule}
        for rule_id, rule in rules.items()
    }
    _stock_modify_rules(self, group_id, complete)


def prep_nics(self, nic_spec, *args, **kwargs) -> None:
    """Interfaces that are made at the launch go with the instance, unless it was said that they stay."""
    existing = set(self.ec2_backend.enis)
    stay = {int(nic["DeviceIndex"]) for nic in nic_spec if nic.get("DeleteOnTermination") is False}
    _stock_prep_nics(self, nic_spec, *args, **kwargs)
    for index, nic in self.nics.items():
        if nic.id not in existing and index not in stay:
            nic.delete_on_termination = True


def delete_nat_gateway(self, nat_gateway_id):
    """Its address is free again, and its interface is gone."""
    gateway = _stock_delete_nat_gateway(self, nat_gateway_id)
    for address in self.describe_addresses():
        if address.eni is gateway._eni:
            self.disassociate_address(association_id=address.association_id)
    self.enis.pop(gateway._eni.id, None)
    return gateway


def rule_description(rule) -> str | None:
    for source in (rule.ip_range, rule.source_group, rule.prefix_list_id):
        if isinstance(source, dict) and source.get("Description"):
            return source["Description"]
    return None


def init_template(self, backend, name, template_data, version_description, tag_spec):
    """Without the template's own tags, and without an empty UserData, in the data."""
    data = {k: v for k, v in template_data.items() if k != "TagSpecifications" and v is not None}
    for_launches = [
        spec for spec in template_data.get("TagSpecifications", []) if spec.get("ResourceType") != "launch-template"
    ]
    if for_launches:
        data["TagSpecifications"] = for_launches
    _stock_init(self, backend, name, data, version_description, tag_spec)


def create_launch_template_version(self):
    data = self._get_param("LaunchTemplateData", {})
    if data.get("UserData") is not None:
        data["UserData"] = parse_user_data(data["UserData"])
    source = self._get_param("SourceVersion")
    if source:
        identity = self._get_param("LaunchTemplateId")
        template = (
            self.ec2_backend.get_launch_template(identity)
            if identity
            else self.ec2_backend.get_launch_template_by_name(self._get_param("LaunchTemplateName"))
        )
        data = {**template.get_version(source).data, **data}

    get_param = self._get_param
    self._get_param = lambda name, *default: data if name == "LaunchTemplateData" else get_param(name, *default)
    return _stock_create_version(self)
