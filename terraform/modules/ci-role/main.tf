# What a CI job may do without any key of ours: its platform's token names repository and branch, AWS checks it, and
# the job gets an hour as this role. It may read everything there is to plan, and put up releases and bundles.
# To let it apply as well, name the policies that say what it may make.

locals {
  host       = trimprefix(var.issuer_url, "https://")
  issuer_arn = var.issuer_arn != null ? var.issuer_arn : one(aws_iam_openid_connect_provider.this[*].arn)
  bucket     = { for use, name in var.buckets : use => "arn:${data.aws_partition.this.partition}:s3:::${name}" }
}

data "aws_partition" "this" {}

resource "aws_iam_openid_connect_provider" "this" {
  count          = var.issuer_arn == null ? 1 : 0
  url            = var.issuer_url
  client_id_list = ["sts.amazonaws.com"]
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [local.issuer_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.host}:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringLike"
      variable = "${local.host}:sub"
      values   = var.subjects
    }
  }
}

data "aws_iam_policy_document" "ci" {
  statement {
    sid       = "ReadStates"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket.state]
  }

  statement {
    sid       = "ReadAndWriteStates"
    actions   = ["s3:GetObject", "s3:PutObject"]
    resources = ["${local.bucket.state}/${var.env}/*.tfstate"]
  }

  # Native locks are objects beside the states; giving one back deletes it.
  statement {
    sid       = "LockStates"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    resources = ["${local.bucket.state}/${var.env}/*.tfstate.tflock"]
  }

  statement {
    sid       = "PublishReleasesAndBundles"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    resources = ["${local.bucket.artifacts}/releases/*", "${local.bucket.artifacts}/bundles/*"]
  }

  statement {
    sid       = "ListArtifacts"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket.artifacts]
  }

  # What a plan reads beside what the policies below list: the broker's token, which the states hold as well, and the
  # newest image.
  statement {
    sid       = "ReadToken"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = ["arn:${data.aws_partition.this.partition}:secretsmanager:${var.region}:${var.account_id}:secret:sluice-${var.env}-token-*"]
  }

  statement {
    sid       = "DrawPassword"
    actions   = ["secretsmanager:GetRandomPassword"]
    resources = ["*"] # AWS knows no narrower resource for it; it reads nothing
  }

  statement {
    sid       = "ReadNewestImage"
    actions   = ["ssm:GetParameter"]
    resources = ["arn:${data.aws_partition.this.partition}:ssm:${var.region}::parameter/aws/service/ami-amazon-linux-latest/*"]
  }

  statement {
    sid       = "UseDataKey"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = ["arn:${data.aws_partition.this.partition}:kms:${var.region}:${var.account_id}:key/*"]

    condition {
      test     = "ForAnyValue:StringEquals"
      variable = "kms:ResourceAliases"
      values   = ["alias/sluice-${var.env}-data"]
    }
  }
}

resource "aws_iam_role" "ci" {
  name                 = "sluice-${var.env}-ci"
  assume_role_policy   = data.aws_iam_policy_document.assume.json
  max_session_duration = 3600 # seconds
  permissions_boundary = var.permissions_boundary_arn
}

resource "aws_iam_role_policy" "ci" {
  name   = "ci"
  role   = aws_iam_role.ci.id
  policy = data.aws_iam_policy_document.ci.json
}

# AWS keeps these lists up to date: what there is, and how it is set up. They read no secret's value and no object.
resource "aws_iam_role_policy_attachment" "plan" {
  for_each   = toset(["job-function/ViewOnlyAccess", "SecurityAudit"])
  role       = aws_iam_role.ci.name
  policy_arn = "arn:${data.aws_partition.this.partition}:iam::aws:policy/${each.key}"
}

resource "aws_iam_role_policy_attachment" "apply" {
  for_each   = toset(var.apply_policy_arns)
  role       = aws_iam_role.ci.name
  policy_arn = each.key
}
