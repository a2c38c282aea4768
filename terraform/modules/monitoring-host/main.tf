# One machine for Prometheus, Alertmanager, Grafana and Pushgateway. What they have measured is on a volume of its own,
# which outlives the machine.

locals {
  roles = { for name, ports in var.scrape : name => { group = var.node_security_group_ids[name], ports = ports } }
  scrapes = merge([
    for name, role in local.roles : { for port in role.ports : "${name}-${port}" => { group = role.group, port = port } }
  ]...)
  tags = { Name = var.name, Env = var.env, Role = "monitoring", Release = var.release }
}

data "aws_partition" "this" {}

data "aws_ssm_parameter" "newest_image" {
  count = var.image_id == "" ? 1 : 0
  name  = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

resource "aws_security_group" "this" {
  # checkov:skip=CKV2_AWS_5:it is the host's own, below
  name        = var.name
  description = "monitoring host"
  vpc_id      = var.vpc_id
  tags        = { Name = var.name }
}

resource "aws_vpc_security_group_ingress_rule" "scrape" {
  for_each                     = local.scrapes
  security_group_id            = each.value.group
  referenced_security_group_id = aws_security_group.this.id
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
  description                  = "monitoring to ${each.key}"
}

# Batch jobs push their figures; nothing else comes in. People come through Session Manager.
resource "aws_vpc_security_group_ingress_rule" "push" {
  for_each                     = local.roles
  security_group_id            = aws_security_group.this.id
  referenced_security_group_id = each.value.group
  ip_protocol                  = "tcp"
  from_port                    = 9091
  to_port                      = 9091
  description                  = "${each.key} to pushgateway"
}

# Its release, AWS's APIs, and whatever channel alerts go out by.
resource "aws_vpc_security_group_egress_rule" "anywhere" {
  security_group_id = aws_security_group.this.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  description       = "anywhere"
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "host" {
  # checkov:skip=CKV_AWS_111:"*" only where AWS knows no narrower resource: Session Manager's channels
  # checkov:skip=CKV_AWS_356:as above, and for reading figures and instances
  statement {
    sid       = "ReadReleases"
    actions   = ["s3:GetObject"]
    resources = ["arn:${data.aws_partition.this.partition}:s3:::${var.artifacts_bucket}/releases/*"]
  }

  statement {
    sid       = "UseDataKey"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms_key_arn]
  }

  statement {
    sid       = "SendAlerts"
    actions   = ["sns:Publish"]
    resources = [var.topic_arn]
  }

  statement {
    sid = "FindNodesAndReadFigures"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "cloudwatch:GetMetricData",
      "cloudwatch:ListMetrics",
      "ec2:DescribeAvailabilityZones",
      "ec2:DescribeInstances",
    ]
    resources = ["*"] # AWS knows no narrower resource for these
  }

  # A shell without SSH: exactly what Session Manager needs.
  statement {
    sid = "SessionManager"
    actions = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    resources = ["*"]
  }
}

resource "aws_iam_role" "this" {
  name                 = var.name
  assume_role_policy   = data.aws_iam_policy_document.assume.json
  permissions_boundary = var.permissions_boundary_arn
}

resource "aws_iam_role_policy" "host" {
  name   = "host"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.host.json
}

resource "aws_iam_instance_profile" "this" {
  name = var.name
  role = aws_iam_role.this.name
}

module "boot" {
  source = "../boot"
  settings = merge({
    AWS_REGION           = var.region
    SLUICE_ENV           = var.env
    SLUICE_ROLE          = "monitoring"
    SLUICE_ARTIFACTS_URL = "s3://${var.artifacts_bucket}"
    SLUICE_ALERTS_TOPIC  = var.topic_arn
    SLUICE_VOLUME        = "/dev/sdf"
  }, length(var.release_keys) > 0 ? { SLUICE_RELEASE_KEY = join(",", var.release_keys) } : {})
}

resource "aws_instance" "this" {
  ami                    = var.image_id != "" ? var.image_id : data.aws_ssm_parameter.newest_image[0].insecure_value
  instance_type          = var.instance_type
  subnet_id              = var.subnet_id
  vpc_security_group_ids = [aws_security_group.this.id]
  iam_instance_profile   = aws_iam_instance_profile.this.name
  user_data              = module.boot.user_data
  monitoring             = true
  ebs_optimized          = true
  tags                   = local.tags

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required" # IMDSv2 only
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled" # the release is read from there
  }

  root_block_device {
    volume_size = 30
    volume_type = "gp3"
    encrypted   = true
  }

  lifecycle {
    # Amazon's newest image is not worth a new machine each month; nor is a release, which `deployctl` tags.
    ignore_changes = [ami, tags["Release"]]
  }
}

resource "aws_ebs_volume" "figures" {
  availability_zone = var.zone
  size              = var.volume_gb
  type              = "gp3"
  encrypted         = true
  kms_key_id        = var.kms_key_arn
  tags              = { Name = "${var.name}-figures" }
}

resource "aws_volume_attachment" "figures" {
  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.figures.id
  instance_id = aws_instance.this.id
}
