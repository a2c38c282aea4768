"""What the other patches hold: S3, EC2, ElastiCache, RDS and the server itself."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.request
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .conftest import Clients


def test_ready_without_any_aws_call(endpoint: str) -> None:
    with urllib.request.urlopen(f"{endpoint}/_sluice/ready") as answer:
        assert (answer.status, answer.read()) == (200, b"ok")


@pytest.mark.parametrize(
    ("service", "call"), [("autoscaling", "describe_account_limits"), ("ec2", "get_console_screenshot")]
)
def test_an_operation_that_is_not_there_is_a_final_501(clients: Clients, service: str, call: str) -> None:
    arguments = {"InstanceId": "i-1"} if service == "ec2" else {}
    with pytest.raises(ClientError) as e:
        getattr(clients(service), call)(**arguments)
    assert e.value.response["Error"]["Code"] == "NotImplemented"
    assert e.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501


class TestS3:
    def test_a_deny_applies_only_where_its_condition_holds(self, clients: Clients, name: str) -> None:
        s3, bucket = clients("s3"), f"bucket-{name}"
        s3.create_bucket(Bucket=bucket)
        s3.put_bucket_policy(Bucket=bucket, Policy=deny(bucket, {"Bool": {"aws:SecureTransport": "false"}}))
        s3.put_object(Bucket=bucket, Key="k", Body=b"1")
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"
        s3.put_bucket_policy(Bucket=bucket, Policy=deny(bucket, {"Bool": {"aws:SecureTransport": "true"}}))
        with pytest.raises(ClientError) as e:
            s3.get_object(Bucket=bucket, Key="k")
        assert e.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403

    def test_of_simultaneous_conditional_writes_exactly_one_wins(
        self, clients: Clients, endpoint: str, name: str
    ) -> None:
        bucket = f"bucket-{name}"
        clients("s3").create_bucket(Bucket=bucket)
        scope = "Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=unchecked"
        headers = {"If-None-Match": "*", "Authorization": f"AWS4-HMAC-SHA256 {scope}"}
        writers = [http.client.HTTPConnection(endpoint.removeprefix("http://")) for _ in range(6)]
        for round_ in range(60):
            for writer in writers:  # all are asked before any is listened to
                writer.request("PUT", f"/{bucket}/lock{round_}", headers=headers)
            answers = [writer.getresponse() for writer in writers]
            for answer in answers:
                answer.read()
            assert sorted(answer.status for answer in answers) == [200, *[412] * 5]
        for writer in writers:
            writer.close()

    def test_access_logs_need_a_statement_for_the_logging_service_whatever_else_the_policy_says(
        self, clients: Clients, name: str
    ) -> None:
        s3, bucket, logs = clients("s3"), f"bucket-{name}", f"logs-{name}"
        for each in (bucket, logs):
            s3.create_bucket(Bucket=each)
        tls_only = json.loads(deny(logs, {"Bool": {"aws:SecureTransport": "false"}}))
        s3.put_bucket_policy(Bucket=logs, Policy=json.dumps(tls_only))
        wanted = {"LoggingEnabled": {"TargetBucket": logs, "TargetPrefix": "a/"}}
        with pytest.raises(ClientError):
            s3.put_bucket_logging(Bucket=bucket, BucketLoggingStatus=wanted)
        tls_only["Statement"].append(
            {
                "Effect": "Allow",
                "Principal": {"Service": "logging.s3.amazonaws.com"},
                "Action": "s3:PutObject",
                "Resource": f"arn:aws:s3:::{logs}/*",
            }
        )
        s3.put_bucket_policy(Bucket=logs, Policy=json.dumps(tls_only))
        s3.put_bucket_logging(Bucket=bucket, BucketLoggingStatus=wanted)
        assert s3.get_bucket_logging(Bucket=bucket)["LoggingEnabled"]["TargetBucket"] == logs


class TestSqs:
    def test_changing_an_attribute_leaves_the_others_and_redrive_policies_as_written(
        self, clients: Clients, name: str
    ) -> None:
        sqs = clients("sqs")
        dead = sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
        target = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        redrive = f'{{"deadLetterTargetArn":"{target}","maxReceiveCount":3}}'
        policy = deny(name, {"Bool": {"aws:SecureTransport": "false"}})
        queue = sqs.create_queue(QueueName=name, Attributes={"Policy": policy, "RedrivePolicy": redrive})["QueueUrl"]
        sqs.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "60"})
        found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
        assert (found["VisibilityTimeout"], found["RedrivePolicy"]) == ("60", redrive)
        assert json.loads(found["Policy"]) == json.loads(policy)


class TestRoute53:
    def test_a_zone_made_with_a_vpc_is_private(self, clients: Clients, name: str) -> None:
        route53 = clients("route53")
        vpc = clients("ec2").create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
        in_vpc = {"VPCRegion": "us-east-1", "VPCId": vpc}
        made = route53.create_hosted_zone(Name=f"{name}.internal", CallerReference=name, VPC=in_vpc)
        assert made["HostedZone"]["Config"]["PrivateZone"] is True
        public = route53.create_hosted_zone(Name=f"{name}.example", CallerReference=f"{name}-public")
        assert public["HostedZone"]["Config"]["PrivateZone"] is False


def deny(bucket: str, condition: dict[str, Any]) -> str:
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*Object",
        "Resource": f"arn:aws:s3:::{bucket}/*",
        "Condition": condition,
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


class TestEc2:
    def test_detailed_monitoring_can_be_switched(self, clients: Clients) -> None:
        ec2 = clients("ec2")
        made = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType="t3.micro")
        instance = made["Instances"][0]["InstanceId"]
        for switch, state in ((ec2.monitor_instances, "enabled"), (ec2.unmonitor_instances, "disabled")):
            switch(InstanceIds=[instance])
            found = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
            assert found["Monitoring"]["State"] == state
        ec2.terminate_instances(InstanceIds=[instance])

    def test_interfaces_go_with_what_they_were_made_for(self, clients: Clients) -> None:
        ec2 = clients("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24")["Subnet"]["SubnetId"]

        def interfaces() -> list[str]:
            found = ec2.describe_network_interfaces(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
            return [i["NetworkInterfaceId"] for i in found["NetworkInterfaces"]]

        # Given a NAT gateway with an address
        address = ec2.allocate_address(Domain="vpc")["AllocationId"]
        made = ec2.create_nat_gateway(SubnetId=subnet, AllocationId=address)["NatGateway"]
        assert len(interfaces()) == 1
        # When it is deleted, its interface goes and its address is free
        ec2.delete_nat_gateway(NatGatewayId=made["NatGatewayId"])
        assert interfaces() == []
        (free,) = ec2.describe_addresses(AllocationIds=[address])["Addresses"]
        assert "AssociationId" not in free
        # And an instance's own interface goes with it, one that it was told to keep stays
        kept = {"DeviceIndex": 1, "SubnetId": subnet, "DeleteOnTermination": False}
        launch = {"ImageId": "ami-12c6146b", "MinCount": 1, "MaxCount": 1}
        nics = [{"DeviceIndex": 0, "SubnetId": subnet}, kept]
        instance = ec2.run_instances(**launch, NetworkInterfaces=nics)["Instances"][0]["InstanceId"]
        assert len(interfaces()) == 2
        ec2.terminate_instances(InstanceIds=[instance])
        assert len(interfaces()) == 1

    def test_a_rule_between_groups_keeps_its_description(self, clients: Clients, name: str) -> None:
        ec2 = clients("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
        group = ec2.create_security_group(GroupName=name, Description="d", VpcId=vpc)["GroupId"]
        pair = {"GroupId": group, "Description": "web to database"}
        permission = {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "UserIdGroupPairs": [pair]}
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
        rules = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
        assert [r.get("Description") for r in rules["SecurityGroupRules"] if not r["IsEgress"]] == ["web to database"]

    def test_a_rule_for_all_protocols_is_changed_without_ports(self, clients: Clients, name: str) -> None:
        ec2 = clients("ec2")
        group = ec2.create_security_group(GroupName=name, Description="d")["GroupId"]
        of_group = [{"Name": "group-id", "Values": [group]}]
        (rule,) = ec2.describe_security_group_rules(Filters=of_group)["SecurityGroupRules"]  # the one that AWS makes
        anywhere = {"IpProtocol": "-1", "CidrIpv4": "0.0.0.0/0", "Description": "anywhere"}
        change = {"SecurityGroupRuleId": rule["SecurityGroupRuleId"], "SecurityGroupRule": anywhere}
        ec2.modify_security_group_rules(GroupId=group, SecurityGroupRules=[change])
        (found,) = ec2.describe_security_group_rules(Filters=of_group)["SecurityGroupRules"]
        assert (found["Description"], found["FromPort"], found["ToPort"]) == ("anywhere", -1, -1)
        # But one for TCP says which
        change["SecurityGroupRule"] = {**anywhere, "IpProtocol": "tcp"}
        with pytest.raises(ec2.exceptions.ClientError, match="both from and to ports"):
            ec2.modify_security_group_rules(GroupId=group, SecurityGroupRules=[change])

    def test_a_template_version_starts_from_its_source_and_holds_no_tags_of_the_template(
        self, clients: Clients, name: str
    ) -> None:
        ec2 = clients("ec2")
        ec2.create_launch_template(
            LaunchTemplateName=name,
            LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "t3.micro"},
            TagSpecifications=[{"ResourceType": "launch-template", "Tags": [{"Key": "Env", "Value": "test"}]}],
        )
        user_data = base64.b64encode(b"#cloud-config").decode()
        ec2.create_launch_template_version(
            LaunchTemplateName=name, SourceVersion="1", LaunchTemplateData={"UserData": user_data}
        )
        versions = ec2.describe_launch_template_versions(LaunchTemplateName=name)["LaunchTemplateVersions"]
        assert {v["VersionNumber"]: v["LaunchTemplateData"] for v in versions} == {
            1: {"ImageId": "ami-12c6146b", "InstanceType": "t3.micro"},
            2: {"ImageId": "ami-12c6146b", "InstanceType": "t3.micro", "UserData": user_data},
        }


class TestElastiCache:
    @pytest.fixture
    def cache(self, clients: Clients) -> Any:
        return clients("elasticache")

    def test_every_member_is_a_cache_cluster(self, cache: Any, name: str) -> None:
        cache.create_cache_parameter_group(
            CacheParameterGroupName=name, CacheParameterGroupFamily="valkey8", Description="d"
        )
        cache.create_replication_group(
            ReplicationGroupId=name,
            ReplicationGroupDescription="d",
            Engine="valkey",
            EngineVersion="8.0",
            NumCacheClusters=3,
            CacheParameterGroupName=name,
            SecurityGroupIds=["sg-1"],
        )
        (group,) = cache.describe_replication_groups(ReplicationGroupId=name)["ReplicationGroups"]
        assert len(group["MemberClusters"]) == 3
        for member in group["MemberClusters"]:
            (cluster,) = cache.describe_cache_clusters(CacheClusterId=member)["CacheClusters"]
            assert cluster["EngineVersion"] == "8.0.0"
            assert cluster["CacheParameterGroup"]["CacheParameterGroupName"] == name
            assert cluster["SecurityGroups"] == [{"SecurityGroupId": "sg-1", "Status": "active"}]

    def test_a_change_shows_and_a_deleted_group_is_gone(self, cache: Any, name: str) -> None:
        cache.create_replication_group(ReplicationGroupId=name, ReplicationGroupDescription="d", NumCacheClusters=1)
        cache.modify_replication_group(ReplicationGroupId=name, CacheNodeType="cache.m7g.large")
        (cluster,) = cache.describe_cache_clusters(CacheClusterId=f"{name}-001")["CacheClusters"]
        assert cluster["CacheNodeType"] == "cache.m7g.large"
        cache.delete_replication_group(ReplicationGroupId=name)
        with pytest.raises(ClientError, match="ReplicationGroupNotFound"):
            cache.describe_replication_groups(ReplicationGroupId=name)

    def test_parameters_set_are_read_back(self, cache: Any, name: str) -> None:
        cache.create_cache_parameter_group(
            CacheParameterGroupName=name, CacheParameterGroupFamily="valkey8", Description="d"
        )
        setting = {"ParameterName": "maxmemory-policy", "ParameterValue": "noeviction"}
        cache.modify_cache_parameter_group(CacheParameterGroupName=name, ParameterNameValues=[setting])
        (found,) = cache.describe_cache_parameters(CacheParameterGroupName=name, Source="user")["Parameters"]
        assert found["ParameterValue"] == "noeviction"


class TestRds:
    def test_each_instance_is_found_by_a_resource_id_of_its_own(self, clients: Clients, name: str) -> None:
        rds = clients("rds")
        for number in (1, 2):
            rds.create_db_instance(
                DBInstanceIdentifier=f"{name}-{number}",
                DBInstanceClass="db.t4g.micro",
                Engine="postgres",
                AllocatedStorage=20,
                MasterUsername="sluice",
                MasterUserPassword="not-a-secret",
            )
        one = rds.describe_db_instances(DBInstanceIdentifier=f"{name}-1")["DBInstances"][0]["DbiResourceId"]
        found = rds.describe_db_instances(Filters=[{"Name": "dbi-resource-id", "Values": [one]}])["DBInstances"]
        assert [d["DBInstanceIdentifier"] for d in found] == [f"{name}-1"]

    def test_settings_survive_and_each_managed_password_is_its_own(self, clients: Clients, name: str) -> None:
        rds, secrets = clients("rds"), clients("secretsmanager")
        logins = []
        for identifier in (f"{name}-a", f"{name}-b"):
            made = rds.create_db_instance(
                DBInstanceIdentifier=identifier,
                DBInstanceClass="db.t4g.medium",
                Engine="postgres",
                AllocatedStorage=20,
                MasterUsername="sluice",
                ManageMasterUserPassword=True,
                MultiAZ=True,
                EnablePerformanceInsights=True,
            )["DBInstance"]
            assert made["PerformanceInsightsEnabled"]
            assert made["SecondaryAvailabilityZone"] != made["AvailabilityZone"]
            secret = secrets.get_secret_value(SecretId=made["MasterUserSecret"]["SecretArn"])["SecretString"]
            logins.append(json.loads(secret))
        assert [login["username"] for login in logins] == ["sluice", "sluice"]
        assert logins[0]["password"] != logins[1]["password"]
        # And being told again to manage it changes nothing: it is turned on where it was off
        again = rds.modify_db_instance(DBInstanceIdentifier=f"{name}-b", ManageMasterUserPassword=True)["DBInstance"]
        assert again["MasterUserSecret"]["SecretArn"] == made["MasterUserSecret"]["SecretArn"]

    def test_parameters_a_user_set_are_listed_as_such(self, clients: Clients, name: str) -> None:
        rds = clients("rds")
        rds.create_db_parameter_group(DBParameterGroupName=name, DBParameterGroupFamily="postgres17", Description="d")
        setting = {"ParameterName": "log_min_duration_statement", "ParameterValue": "500", "ApplyMethod": "immediate"}
        rds.modify_db_parameter_group(DBParameterGroupName=name, Parameters=[setting])
        (found,) = rds.describe_db_parameters(DBParameterGroupName=name, Source="user")["Parameters"]
        assert (found["ParameterValue"], found["Source"]) == ("500", "user")
        rds.reset_db_parameter_group(DBParameterGroupName=name, ResetAllParameters=True)
        assert rds.describe_db_parameters(DBParameterGroupName=name, Source="user")["Parameters"] == []
