# What a node of one role may do on AWS, and nothing else.

data "aws_partition" "this" {}

locals {
  bucket_arns = { for use, bucket in var.buckets : use => "arn:${data.aws_partition.this.partition}:s3:::${bucket}" }
  group_arn   = "arn:${data.aws_partition.this.partition}:autoscaling:${var.region}:${var.account_id}:autoScalingGroup:*:autoScalingGroupName"
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

data "aws_iam_policy_document" "node" {
  # checkov:skip=CKV_AWS_111:"*" only where AWS knows no narrower resource: Session Manager's channels, a namespaced metric
  # checkov:skip=CKV_AWS_356:as above, and for reading the groups
  statement {
    sid = "LeaveOwnGroup"
    actions = [
      "autoscaling:CompleteLifecycleAction",
      "autoscaling:RecordLifecycleActionHeartbeat",
      "autoscaling:TerminateInstanceInAutoScalingGroup", # a machine that has to go is replaced
    ]
    resources = ["${local.group_arn}/${var.own_groups}"]
  }

  statement {
    sid       = "SeeOwnLifecycle"
    actions   = ["autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLifecycleHooks"]
    resources = ["*"] # AWS knows no narrower resource for these
  }

  # A machine that cannot boot says why where it is seen without a login: in its tag.
  statement {
    sid       = "TellWhyBootFailed"
    actions   = ["ec2:CreateTags"]
    resources = ["arn:${data.aws_partition.this.partition}:ec2:${var.region}:${var.account_id}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/Env"
      values   = [var.env]
    }

    condition {
      test     = "ForAllValues:StringEquals"
      variable = "aws:TagKeys"
      values   = ["Boot"]
    }
  }

  statement {
    sid       = "ReadReleasesAndBundles"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arns.artifacts}/releases/*", "${local.bucket_arns.artifacts}/bundles/*"]
  }

  statement {
    sid       = "KeepLogsAndFiles"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${local.bucket_arns.storage}/logs/*", "${local.bucket_arns.storage}/files/*"]
  }

  statement {
    sid       = "ListBuckets"
    actions   = ["s3:ListBucket"]
    resources = values(local.bucket_arns)
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

  # The age of the last heartbeat and what the fleet is doing; no other program's figures.
  statement {
    sid       = "ReportFigures"
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"] # AWS knows no narrower resource for it; the condition narrows it

    condition {
      test     = "StringEquals"
      variable = "cloudwatch:namespace"
      values   = ["Sluice"]
    }
  }

  dynamic "statement" {
    for_each = length(var.secret_arns) > 0 ? [var.secret_arns] : []

    content {
      sid       = "ReadEngineLogins"
      actions   = ["secretsmanager:GetSecretValue"]
      resources = statement.value
    }
  }

  dynamic "statement" {
    for_each = var.kms_key_arn != "" ? [var.kms_key_arn] : []

    content {
      sid       = "UseDataKey"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [statement.value]
    }
  }

  dynamic "statement" {
    for_each = var.drives_rollouts ? [1] : []

    content {
      sid = "SeeGroups"
      actions = [
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribeScalingActivities",
        "ec2:DescribeInstances",
        "ec2:DescribeLaunchTemplateVersions",
        "elasticloadbalancing:DescribeTargetHealth",
      ]
      resources = ["*"] # AWS knows no narrower resource for these
    }
  }

  dynamic "statement" {
    for_each = var.drives_rollouts ? [1] : []

    content {
      sid = "DriveRollouts"
      actions = [
        "autoscaling:CreateOrUpdateTags",
        "autoscaling:SetDesiredCapacity",
        "autoscaling:SetInstanceProtection",
        "autoscaling:TerminateInstanceInAutoScalingGroup",
        "autoscaling:UpdateAutoScalingGroup",
      ]
      resources = ["${local.group_arn}/sluice-${var.env}-*"]
    }
  }
}

resource "aws_iam_role" "node" {
  name                 = var.name
  assume_role_policy   = data.aws_iam_policy_document.assume.json
  permissions_boundary = var.permissions_boundary_arn
}

resource "aws_iam_role_policy" "node" {
  name   = "node"
  role   = aws_iam_role.node.id
  policy = data.aws_iam_policy_document.node.json
}

resource "aws_iam_instance_profile" "node" {
  name = var.name
  role = aws_iam_role.node.name
}
